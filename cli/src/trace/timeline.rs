//! One trace as tracks of bars: a track for each process; bars that overlap are in different lanes.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};

/// A span of any trace, as it was exported.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Exported {
    pub(super) trace: String,
    pub(super) id: String,
    /// Empty in the first span of a trace.
    pub(super) parent: String,
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

impl Track {
    /// The role of the process.
    pub(crate) fn role(&self) -> &str {
        self.service
            .strip_prefix("offshoot-")
            .unwrap_or(&self.service)
    }
}

/// One span.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) lane: usize,
    pub(crate) attributes: Vec<(String, String)>,
    /// What a target's step did, where it is told.
    pub(crate) walk: Option<Walk>,
}

/// What a target's step did with guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Tokens that became text.
    pub(crate) committed: u64,
    /// Length of the main chain that was submitted.
    pub(crate) submitted: u64,
    /// How much of it was accepted; the rest was rolled back.
    pub(crate) accepted: u64,
    /// Whether somebody had guessed the last of the tokens, so that the next step has guesses to verify.
    pub(crate) is_hit: bool,
}

impl Bar {
    /// An attribute, if the span has it.
    pub(crate) fn attribute(&self, wanted: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(key, _)| key == wanted);
        found.map(|(_, value)| value.as_str())
    }

    /// An attribute that is a number.
    pub(crate) fn number(&self, wanted: &str) -> Option<u64> {
        self.attribute(wanted)?.parse().ok()
    }

    /// Whether the step was abandoned.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.attribute("offshoot.abandoned") == Some("true")
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
        take(export, &mut found);
    }
    Ok(found)
}

/// The spans of one export.
pub(super) fn take(export: ExportTraceServiceRequest, found: &mut Vec<Exported>) {
    let hex = |id: &[u8]| -> String { id.iter().map(|byte| format!("{byte:02x}")).collect() };
    for resource in export.resource_spans {
        let about = resource.resource.unwrap_or_default().attributes;
        let word = |key: &str| {
            let found = about.iter().find(|attribute| attribute.key == key);
            found.map(text_of).unwrap_or_default()
        };
        let (service, instance) = (word("service.name"), word("service.instance.id"));
        for span in (resource.scope_spans.into_iter()).flat_map(|scope| scope.spans) {
            found.push(Exported {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
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
        correct_clocks(&mut spans);
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
        let mut tracks: Vec<Track> = (tracks.into_iter())
            .map(|((_, service, instance), spans)| track(service, instance, spans, first))
            .collect();
        for track in &mut tracks {
            judge(track);
        }
        Some(Timeline {
            trace,
            length_ns: last - first,
            tracks,
        })
    }
}

/// How far a session may end behind its request: it is closed when the request has ended.
const CLOSING_NS: u64 = 50_000_000;

/// Processes of several machines have several clocks. What a process did for a span of another one happened while that one
/// lasted: a process whose spans lie elsewhere is shifted as little as makes them fit. What is left is at most the time
/// between the beginning of a request and of its session.
fn correct_clocks(spans: &mut [Exported]) {
    type Process = (String, String);
    let of = |span: &Exported| -> Process { (span.service.clone(), span.instance.clone()) };
    let mut known: BTreeMap<String, (Process, u64, u64)> = BTreeMap::new();
    for span in spans.iter() {
        known.insert(span.id.clone(), (of(span), span.start_ns, span.end_ns));
    }
    // How a process stands to its callers' clocks, and to the first process' in the end.
    let mut shifts: BTreeMap<Process, (Process, i128)> = BTreeMap::new();
    for span in spans.iter() {
        let Some((caller, from, until)) = known.get(&span.parent) else {
            continue;
        };
        let process = of(span);
        if *caller == process {
            continue;
        }
        let early = i128::from(*from) - i128::from(span.start_ns);
        let late = i128::from(until + CLOSING_NS) - i128::from(span.end_ns);
        let shift = match (early > 0, late < 0) {
            (true, _) => early,
            (false, true) => late,
            (false, false) => 0,
        };
        shifts.entry(process).or_insert((caller.clone(), shift));
    }
    for span in spans.iter_mut() {
        let (mut at, mut shift) = (of(span), 0);
        // As many steps as there are processes: nobody is asked whether callers go round in a circle.
        for _ in 0..shifts.len() {
            let Some((caller, more)) = shifts.get(&at) else {
                break;
            };
            shift += more;
            at = caller.clone();
        }
        let moved = |time: u64| u64::try_from(i128::from(time) + shift).unwrap_or(time);
        (span.start_ns, span.end_ns) = (moved(span.start_ns), moved(span.end_ns));
    }
}

/// Who had guessed each token, by its position in the text, as the steps of a track tell.
pub(crate) fn guessers(track: &Track) -> BTreeMap<u64, String> {
    let mut all = BTreeMap::new();
    for bar in &track.bars {
        let (Some(from), Some(names)) = (
            bar.number("offshoot.guessed_from"),
            bar.attribute("offshoot.guessed"),
        ) else {
            continue;
        };
        for (at, name) in names.split_whitespace().enumerate() {
            all.insert(from.saturating_add(at as u64), name.to_owned());
        }
    }
    all
}

/// What each step of a target did.
fn judge(track: &mut Track) {
    let guessers = guessers(track);
    let Some(&first) = guessers.keys().next() else {
        return;
    };
    let mut len = first;
    let mut order: Vec<usize> = (0..track.bars.len()).collect();
    order.sort_by_key(|&at| track.bars[at].end_ns);
    for at in order {
        let bar = &mut track.bars[at];
        let Some(committed) = bar.number("offshoot.committed") else {
            continue;
        };
        len = len.saturating_add(committed);
        let last = guessers.get(&len.saturating_sub(1));
        bar.walk = Some(Walk {
            committed,
            submitted: bar.number("offshoot.chain_submitted").unwrap_or(0),
            accepted: bar.number("offshoot.chain_accepted").unwrap_or(0),
            is_hit: last.is_some_and(|name| name != NOBODY),
        });
    }
}

/// The name of a guesser where nobody had guessed a token: it is the target's own.
pub(crate) const NOBODY: &str = "target";

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
                walk: None,
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
            id: format!("{name}{start_ns}"),
            parent: String::new(),
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
    fn a_clock_that_is_wrong_is_corrected_as_far_as_calls_tell() {
        let mut spans = spans();
        let client = spans.iter().position(|span| span.name == "<generate>");
        let id = spans[client.unwrap()].id.clone();
        for span in &mut spans {
            if span.service == "offshoot-draft" {
                // An hour ahead, and the session is a call of the client.
                span.start_ns += 3_600_000_000_000;
                span.end_ns += 3_600_000_000_000;
            }
            if span.name == "draft session" {
                span.parent.clone_from(&id);
            }
        }
        let timeline = Timeline::of(spans.clone(), "ab").unwrap();
        assert_eq!(timeline.length_ns, 100 + CLOSING_NS);
        for span in &mut spans {
            if span.service == "offshoot-draft" {
                span.start_ns -= 3_600_000_000_500;
                span.end_ns -= 3_600_000_000_500;
            }
        }
        let timeline = Timeline::of(spans, "ab").unwrap();
        assert_eq!(timeline.length_ns, 100);
        let session = &timeline.tracks[1].bars[0];
        assert_eq!(
            (session.name.as_str(), session.start_ns),
            ("draft session", 0)
        );
    }

    #[test]
    fn steps_say_who_had_guessed_what_they_committed() {
        let step = |end_ns, committed: u64, from: u64, guessed: &str| Exported {
            trace: "ab".to_owned(),
            service: "offshoot-target".to_owned(),
            name: "target step".to_owned(),
            start_ns: end_ns - 10,
            end_ns,
            attributes: [
                ("offshoot.committed", committed.to_string()),
                ("offshoot.chain_submitted", "3".to_owned()),
                ("offshoot.chain_accepted", (committed - 1).to_string()),
                ("offshoot.guessed_from", from.to_string()),
                ("offshoot.guessed", guessed.to_owned()),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .to_vec(),
            ..Exported::default()
        };
        // The last token of each step is told with the next one.
        let spans = vec![
            step(20, 1, 7, ""),
            step(40, 2, 7, "target draft:1"),
            step(60, 1, 9, "draft:2 lookup:1"),
        ];
        let timeline = Timeline::of(spans, "").unwrap();
        let track = &timeline.tracks[0];
        let names: Vec<_> = guessers(track).into_values().collect();
        assert_eq!(names, ["target", "draft:1", "draft:2", "lookup:1"]);
        let hits: Vec<_> = (track.bars.iter())
            .map(|bar| bar.walk.map(|walk| (walk.committed, walk.is_hit)))
            .collect();
        assert_eq!(hits, [Some((1, false)), Some((2, true)), Some((1, true))]);
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
