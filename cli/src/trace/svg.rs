//! A timeline as a self-contained SVG: one band for each process, time to the right.

use std::fmt::Write;

use super::timeline::{Bar, Timeline, Track};

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 48.0;
const LANE: f64 = 22.0;
const GAP: f64 = 14.0;
/// The minimum width of a bar; it would be invisible otherwise.
const THINNEST: f64 = 0.6;
/// The space at the end of a bar that separates it from the next.
const EDGE: f64 = 0.7;
/// Width of a character, for names inside bars.
const PER_CHARACTER: f64 = 6.4;

/// Colours by role, from a palette for colour-blind readers.
fn colour(service: &str) -> &'static str {
    match service.strip_prefix("offshoot-").unwrap_or(service) {
        "client" => "#888888",
        "coordinator" => "#cc79a7",
        "target" => "#0072b2",
        "qualifier" => "#e69f00",
        "draft" => "#009e73",
        _ => "#56b4e9",
    }
}

pub(crate) fn draw(timeline: &Timeline) -> String {
    let lanes: usize = timeline.tracks.iter().map(|track| track.lanes).sum();
    let height = TOP + lanes as f64 * LANE + timeline.tracks.len() as f64 * GAP + 12.0;
    let mut out = String::new();
    let mut put = |text: std::fmt::Arguments<'_>| {
        out.write_fmt(text)
            .expect("writing to a string does not fail");
    };
    put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    ));
    let ms = timeline.length_ns as f64 / 1e6;
    put(format_args!(
        "<text x=\"8\" y=\"18\" font-size=\"13\" fill=\"#222222\">trace {}, {ms:.1} ms; pale: abandoned because a commit \
         had made it useless</text>\n",
        escape(&timeline.trace)
    ));
    let scale = (WIDTH - LEFT - RIGHT) / ms.max(1e-6);
    for tick in ticks(ms) {
        let x = LEFT + tick * scale;
        put(format_args!(
            "<path d=\"M{x:.1} {TOP}V{height}\" stroke=\"#dddddd\"/><text x=\"{x:.1}\" y=\"{:.0}\" fill=\"#666666\" \
             text-anchor=\"middle\">{tick} ms</text>\n",
            TOP - 6.0
        ));
    }
    let mut y = TOP + GAP / 2.0;
    for track in &timeline.tracks {
        put(format_args!("{}", band(track, y, scale)));
        y += track.lanes as f64 * LANE + GAP;
    }
    put(format_args!("</svg>\n"));
    out
}

fn band(track: &Track, y: f64, scale: f64) -> String {
    let role = track.role();
    let mut out = format!(
        "<g><text x=\"8\" y=\"{:.0}\" fill=\"#222222\" font-weight=\"bold\">{}</text>\
         <text x=\"8\" y=\"{:.0}\" fill=\"#666666\">{}</text>\n",
        y + 13.0,
        escape(role),
        y + 27.0,
        escape(&track.instance)
    );
    for bar in &track.bars {
        out.push_str(&rectangle(bar, y, scale, colour(&track.service)));
    }
    out.push_str("</g>\n");
    out
}

fn rectangle(bar: &Bar, y: f64, scale: f64, colour: &str) -> String {
    let x = LEFT + bar.start_ns as f64 / 1e6 * scale;
    let length = (bar.end_ns - bar.start_ns) as f64 / 1e6;
    let width = (length * scale - EDGE).max(THINNEST);
    let y = y + bar.lane as f64 * LANE;
    let opacity = if bar.is_abandoned() { "0.25" } else { "0.8" };
    let mut about = format!("{}, {length:.2} ms", bar.name);
    for (key, value) in &bar.attributes {
        about.push_str(&format!("\n{key}: {value}"));
    }
    let mut out = format!(
        "<rect x=\"{x:.1}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\" fill=\"{colour}\" \
         fill-opacity=\"{opacity}\"><title>{}</title></rect>",
        LANE - 4.0,
        escape(&about)
    );
    if width > bar.name.chars().count() as f64 * PER_CHARACTER {
        out.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.0}\" fill=\"#ffffff\" pointer-events=\"none\">{}</text>",
            x + 3.0,
            y + 13.0,
            escape(&bar.name)
        ));
    }
    out.push('\n');
    out
}

/// Round times, about ten of them, up to `ms`.
pub(crate) fn ticks(ms: f64) -> Vec<f64> {
    let rough = (ms / 10.0).max(1e-6);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power);
    (0..)
        .map(|number| (f64::from(number) * step * 1e6).round() / 1e6)
        .take_while(|tick| *tick <= ms)
        .collect()
}

/// Escapes text for XML; names and attributes come from other processes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push('\n'),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::spans;
    use super::*;

    #[test]
    fn every_span_is_a_bar_where_its_time_is() {
        let timeline = Timeline::of(spans(), "ab").unwrap();
        let svg = draw(&timeline);
        assert_eq!(svg.matches("<title>").count(), 4);
        assert_eq!(svg.matches("fill-opacity=\"0.25\"").count(), 1);
        assert!(svg.contains("&lt;generate&gt;") && !svg.contains("<generate>"));
        // The session lasts from 10 to 95 of 100 ns, on 1030 units behind the labels.
        assert!(
            svg.contains("<rect x=\"253.0\" y=\"91\" width=\"874.8\""),
            "{svg}"
        );
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            ticks(10.0),
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
        );
        assert_eq!(ticks(0.0), [0.0]);
        assert_eq!(ticks(1234.0).len(), 7);
        assert!(ticks(0.37).len() <= 11);
    }
}
