//! Timelines in Chrome's trace event format, which Perfetto reads too: one process per track.
//!
//! Format: "Trace Event Format", complete events (`X`), instants (`i`) and counters (`C`) with times in microseconds.

use serde_json::{Map, Value, json};

use super::timeline::Timeline;

/// Draws timelines one below the other, each with a name in front of those of its processes; all of them begin at 0.
pub(crate) fn draw<'a>(timelines: impl IntoIterator<Item = (&'a str, &'a Timeline)>) -> String {
    let mut events = Vec::new();
    let tracks = (timelines.into_iter())
        .flat_map(|(of, timeline)| timeline.tracks.iter().map(move |track| (of, track)));
    for (pid, (of, track)) in (1..).zip(tracks) {
        let name = format!("{of} {} {}", track.service, track.instance);
        events.push(
            json!({"ph": "M", "name": "process_name", "pid": pid, "tid": 0,
            "args": {"name": name.trim()}}),
        );
        events.push(
            json!({"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0,
            "args": {"sort_index": pid}}),
        );
        for bar in &track.bars {
            let about: Map<String, Value> = (bar.attributes.iter())
                .map(|(key, value)| (key.clone(), Value::from(value.as_str())))
                .collect();
            events.push(json!({
                "ph": "X",
                "name": bar.name,
                "pid": pid,
                "tid": bar.lane,
                "ts": bar.start_ns as f64 / 1e3,
                "dur": (bar.end_ns - bar.start_ns) as f64 / 1e3,
                "args": about,
            }));
            let Some(walk) = bar.walk else {
                continue;
            };
            let ends = bar.end_ns as f64 / 1e3;
            let mut instant = |name: String| {
                events.push(json!({
                    "ph": "i", "s": "p", "name": name, "pid": pid, "tid": bar.lane, "ts": ends,
                }));
            };
            instant(if walk.is_hit { "hit" } else { "miss" }.to_owned());
            if walk.submitted > walk.accepted {
                instant(format!("rollback {}", walk.submitted - walk.accepted));
            }
            events.push(json!({
                "ph": "C", "name": "committed", "pid": pid, "ts": ends, "args": {"tokens": walk.committed},
            }));
        }
    }
    format!(
        "{}\n",
        json!({"displayTimeUnit": "ms", "traceEvents": events})
    )
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::spans;
    use super::*;

    #[test]
    fn every_span_is_an_event_of_its_process() {
        let timeline = Timeline::of(spans(), "ab").unwrap();
        let json: Value = serde_json::from_str(&draw([("", &timeline)])).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(complete.len(), 4);
        let session = complete
            .iter()
            .find(|event| event["name"] == "draft session")
            .unwrap();
        assert_eq!((&session["pid"], &session["tid"]), (&json!(2), &json!(0)));
        assert_eq!(
            (&session["ts"], &session["dur"]),
            (&json!(0.01), &json!(0.085))
        );
        assert_eq!(events[0]["args"]["name"], "offshoot-client 127.0.0.1:1");
    }
}
