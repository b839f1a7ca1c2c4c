//! One trace as tracks of bars: a track for each process; bars that overlap are in different lanes.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};

/// A span of any trace, as it was exported.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exported {
    pub(super) trace: String,
    pub(super) service: String,
    pub(super) instance: String,
    pub(super) name: String,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) attributes: Vec<(String, String)>,
}

/// A trace to draw. Times are relative to its first span.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Timeline {
    pub(crate) trace: String,
    pub(crate) length_ns: u64,
    pub(crate) tracks: Vec<Track>,
}

/// One process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Track {
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) lanes: usize,
    pub(crate) bars: Vec<Bar>,
}

/// One span.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) lane: usize,
    pub(crate) attributes: Vec<(String, String)>,
}

impl Bar {
    /// Whether the step was abandoned.
    pub(super) fn is_abandoned(&self) -> bool {
        self.attributes
            .iter()
            .any(|(key, value)| key == "offshoot.abandoned" && value == "true")
    }
}

/// Reads OTLP JSON, one export per line.
pub(super) fn parse(text: &str) -> Result<Vec<Exported>> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let export: ExportTraceServiceRequest = serde_json::from_str(line)
            .with_context(|| format!("line {number} is not an export of traces in OTLP JSON"))?;
        for resource in export.resource_spans {
            let about = resource.resource.unwrap_or_default().attributes;
            let word = |key: &str| {
                let found = about.iter().find(|attribute| attribute.key == key);
                found.map(text_of).unwrap_or_default()
            };
            let (service, instance) = (word("service.name"), word("service.instance.id"));
            for span in (resource.scope_spans.into_iter()).flat_map(|scope| scope.spans) {
                found.push(Exported {
                    trace: span
                        .trace_id
                        .iter()
                        .map(|byte| format!("{byte:02x}"))
                        .collect(),
                    service: service.clone(),
                    instance: instance.clone(),
                    name: span.name,
                    start_ns: span.start_time_unix_nano,
                    end_ns: span.end_time_unix_nano.max(span.start_time_unix_nano),
                    attributes: (span.attributes.iter())
                        .map(|attribute| (attribute.key.clone(), text_of(attribute)))
                        .collect(),
                });
            }
        }
    }
    Ok(found)
}

fn text_of(attribute: &KeyValue) -> String {
    attribute.value.as_ref().map(value).unwrap_or_default()
}

fn value(of: &AnyValue) -> String {
    match &of.value {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::DoubleValue(number)) => number.to_string(),
        Some(any_value::Value::ArrayValue(array)) => {
            let values: Vec<_> = array.values.iter().map(value).collect();
            values.join(", ")
        }
        _ => String::new(),
    }
}

/// The order of tracks: from the client to the drafts, then other services by name.
fn rank(service: &str) -> usize {
    let roles = ["client", "coordinator", "target", "qualifier", "draft"];
    let role = service.strip_prefix("offshoot-").unwrap_or(service);
    (roles.iter().position(|&known| known == role)).unwrap_or(roles.len())
}

impl Timeline {
    /// The trace with the most spans among those whose id starts with `wanted`.
    pub(super) fn of(spans: Vec<Exported>, wanted: &str) -> Option<Timeline> {
        let mut traces: BTreeMap<String, Vec<Exported>> = BTreeMap::new();
        for span in spans {
            if span.trace.starts_with(wanted) {
                traces.entry(span.trace.clone()).or_default().push(span);
            }
        }
        let (trace, mut spans) = traces.into_iter().max_by_key(|(_, spans)| spans.len())?;
        let first = spans.iter().map(|span| span.start_ns).min()?;
        let last = spans.iter().map(|span| span.end_ns).max()?;
        // A span comes before the spans that it contains.
        spans.sort_by_key(|span| (span.start_ns, u64::MAX - span.end_ns));
        let mut tracks: BTreeMap<(usize, String, String), Vec<Exported>> = BTreeMap::new();
        for span in spans {
            let key = (
                rank(&span.service),
                span.service.clone(),
                span.instance.clone(),
            );
            tracks.entry(key).or_default().push(span);
        }
        let tracks = (tracks.into_iter())
            .map(|((_, service, instance), spans)| track(service, instance, spans, first))
            .collect();
        Some(Timeline {
            trace,
            length_ns: last - first,
            tracks,
        })
    }
}

fn track(service: String, instance: String, spans: Vec<Exported>, first: u64) -> Track {
    // The end of the last bar of each lane.
    let mut lanes: Vec<u64> = Vec::new();
    let bars = (spans.into_iter())
        .map(|span| {
            let free = lanes.iter().position(|&until| until <= span.start_ns);
            let lane = free.unwrap_or(lanes.len());
            match lanes.get_mut(lane) {
                Some(until) => *until = span.end_ns,
                None => lanes.push(span.end_ns),
            }
            Bar {
                name: span.name,
                start_ns: span.start_ns - first,
                end_ns: span.end_ns - first,
                lane,
                attributes: span.attributes,
            }
        })
        .collect();
    Track {
        service,
        instance,
        lanes: lanes.len(),
        bars,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A session with two steps on a draft, and a client.
    pub(crate) fn spans() -> Vec<Exported> {
        let span = |service: &str, name: &str, start_ns, end_ns| Exported {
            trace: "ab01".to_owned(),
            service: format!("offshoot-{service}"),
            instance: "127.0.0.1:1".to_owned(),
            name: name.to_owned(),
            start_ns,
            end_ns,
            attributes: vec![(
                "offshoot.abandoned".to_owned(),
                (start_ns == 1_060).to_string(),
            )],
        };
        let mut spans = vec![
            span("draft", "draft step", 1_060, 1_090),
            span("draft", "draft step", 1_020, 1_050),
            span("draft", "draft session", 1_010, 1_095),
            span("client", "<generate>", 1_000, 1_100),
        ];
        spans.push(Exported {
            trace: "cd".to_owned(),
            ..Exported::default()
        });
        spans
    }

    #[test]
    fn steps_share_the_lane_below_their_session() {
        let timeline = Timeline::of(spans(), "").unwrap();
        assert_eq!((timeline.trace.as_str(), timeline.length_ns), ("ab01", 100));
        let names: Vec<_> = timeline
            .tracks
            .iter()
            .map(|track| track.service.as_str())
            .collect();
        assert_eq!(names, ["offshoot-client", "offshoot-draft"]);
        let draft = &timeline.tracks[1];
        let lanes: Vec<_> = (draft.bars.iter())
            .map(|bar| (bar.name.as_str(), bar.start_ns, bar.lane))
            .collect();
        assert_eq!(
            lanes,
            [
                ("draft session", 10, 0),
                ("draft step", 20, 1),
                ("draft step", 60, 1)
            ]
        );
        assert_eq!(draft.lanes, 2);
        assert!(draft.bars[2].is_abandoned() && !draft.bars[1].is_abandoned());
    }

    #[test]
    fn a_trace_is_chosen_by_the_prefix_of_its_id() {
        assert_eq!(Timeline::of(spans(), "c").unwrap().trace, "cd");
        assert_eq!(Timeline::of(spans(), "ef"), None);
        assert_eq!(Timeline::of(Vec::new(), ""), None);
    }

    #[test]
    fn the_collectors_format_is_read_and_invalid_lines_are_named() {
        let line = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"s"}}]},
            "scopeSpans":[{"spans":[{"traceId":"0af7651916cd43dd8448eb211c80319c","spanId":"b7ad6b7169203331",
            "name":"n","startTimeUnixNano":"5","endTimeUnixNano":"9","attributes":[{"key":"k","value":{"intValue":"3"}}]}]}]}]}"#
            .replace('\n', "");
        let spans = parse(&format!("{line}\n\n")).unwrap();
        assert_eq!(spans.len(), 1);
        assert_eq!(spans[0].trace, "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((spans[0].start_ns, spans[0].end_ns), (5, 9));
        assert_eq!(spans[0].attributes, [("k".to_owned(), "3".to_owned())]);
        let error = parse(&format!("{line}\nnot json\n")).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
