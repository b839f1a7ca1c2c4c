//! What each worker did in a request: a lane for each, steps as bars, and below those of a target what became of guesses.

use std::fmt::Write;

use speculation::duty::Role;

use super::{COLOURS, Story};
use crate::trace::{Bar, Timeline, Track, escape, ticks};

/// Steps of a target that are drawn, at most.
const STEPS: usize = 40;
/// Width of a target's step of median length.
const STEP_WIDTH: f64 = 84.0;
/// Height of a bar, and of the room below those of a target.
const BAR: f64 = 24.0;
const BELOW: f64 = 20.0;
const GAP: f64 = 8.0;
/// Room above the lanes, for the times.
const TOP: f64 = 24.0;
/// Room to the left of the lanes, for names.
const LEFT: f64 = 92.0;
/// Below this width a bar has no edge that separates it from the next.
const THIN: f64 = 3.0;

/// A part of a timeline.
#[derive(Clone, Copy, Debug)]
struct Window {
    from_ns: u64,
    until_ns: u64,
    /// Pixels of a millisecond.
    scale: f64,
}

impl Window {
    fn x(&self, ns: u64) -> f64 {
        (ns.clamp(self.from_ns, self.until_ns) - self.from_ns) as f64 / 1e6 * self.scale
    }

    fn width(&self) -> f64 {
        self.x(self.until_ns)
    }

    fn ms(&self) -> f64 {
        (self.until_ns - self.from_ns) as f64 / 1e6
    }
}

/// Patterns that bars refer to, in an SVG of their own.
pub(super) fn patterns(attributes: &str) -> String {
    format!("<svg xmlns=\"http://www.w3.org/2000/svg\" {attributes}>{PATTERNS}</svg>\n")
}

const PATTERNS: &str = "<defs><pattern id=\"idle\" width=\"7\" height=\"7\" patternUnits=\"userSpaceOnUse\" \
    patternTransform=\"rotate(45)\"><rect width=\"7\" height=\"7\" class=\"idle\"/><path d=\"M0 0V7\" class=\"tick\" \
    stroke-width=\"2\"/></pattern><pattern id=\"back\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\" \
    patternTransform=\"rotate(45)\"><path d=\"M0 0V4\" class=\"backline\"/></pattern></defs>";

fn is_step(bar: &&Bar) -> bool {
    bar.name.ends_with(" step")
}

/// The tracks of workers, targets first, each with a name.
fn workers(timeline: &Timeline) -> Vec<(String, &Track)> {
    let mut found = Vec::new();
    for role in Role::ALL.iter().map(|role| role.name()) {
        let tracks: Vec<&Track> = (timeline.tracks.iter())
            .filter(|track| track.role() == role && track.bars.iter().any(|bar| is_step(&bar)))
            .collect();
        for (number, track) in (1..).zip(&tracks) {
            let name = match tracks.len() {
                1 => role.to_owned(),
                _ => format!("{role} {number}"),
            };
            found.push((name, *track));
        }
    }
    // The order of roles elsewhere is another one.
    found.sort_by_key(|(_, track)| order(track));
    found
}

fn order(track: &Track) -> usize {
    let roles = ["target", "qualifier", "draft"];
    let at = roles.iter().position(|&role| role == track.role());
    at.unwrap_or(roles.len())
}

fn is_target(track: &Track) -> bool {
    track.role() == Role::Target.name()
}

fn height(track: &Track) -> f64 {
    BAR + GAP + if is_target(track) { BELOW } else { 0.0 }
}

/// The steps of targets, in order.
fn target_steps(timeline: &Timeline) -> Vec<&Bar> {
    let targets = timeline.tracks.iter().filter(|track| is_target(track));
    let mut steps: Vec<&Bar> = targets
        .flat_map(|track| &track.bars)
        .filter(is_step)
        .collect();
    steps.sort_by_key(|bar| bar.start_ns);
    steps
}

/// Pixels of a millisecond, so that target steps of all stories are wide enough to be read.
fn scale(stories: &[&Story]) -> f64 {
    let steps = (stories.iter()).flat_map(|story| story.timelines.first());
    let lengths = steps.flat_map(|timeline| {
        let steps = target_steps(timeline).into_iter();
        steps.map(|bar| (bar.end_ns - bar.start_ns) as f64 / 1e6)
    });
    let median = crate::statistics::median(lengths).unwrap_or(1.0);
    STEP_WIDTH / median.max(1e-3)
}

/// Names of lanes, as the contents of an SVG.
fn names(lanes: &[(String, &Track)]) -> String {
    let mut out = String::new();
    let mut y = TOP;
    for (name, track) in lanes {
        let _ = write!(
            out,
            "<text x=\"8\" y=\"{:.0}\" class=\"say\" font-size=\"13\">{}</text>",
            y + 17.0,
            escape(name)
        );
        y += height(track);
    }
    out
}

/// Lanes, as the contents of an SVG; times are told from the beginning of the window.
fn lanes(lanes: &[(String, &Track)], window: Window) -> String {
    let mut out = String::new();
    let bottom = TOP + lanes.iter().map(|(_, track)| height(track)).sum::<f64>();
    let mut y = TOP;
    for (_, track) in lanes {
        let _ = write!(
            out,
            "<rect y=\"{y:.0}\" width=\"{:.0}\" height=\"{BAR}\" fill=\"url(#idle)\"/>",
            window.width()
        );
        y += height(track);
    }
    for tick in ticks(window.ms() * 12.0 / (window.width() / 90.0).max(1.0)) {
        let x = tick * window.scale;
        if x > window.width() {
            break;
        }
        let _ = write!(
            out,
            "<path d=\"M{x:.1} {:.0}V{bottom:.0}\" class=\"tick\"/><text x=\"{:.1}\" y=\"14\" class=\"mute\" \
             font-size=\"11\">{tick} ms</text>",
            TOP - 6.0,
            x + 3.0
        );
    }
    let mut y = TOP;
    for (_, track) in lanes {
        for bar in track.bars.iter().filter(is_step) {
            if bar.end_ns > window.from_ns && bar.start_ns < window.until_ns {
                step(&mut out, track, bar, window, y);
            }
        }
        y += height(track);
    }
    out
}

/// One step.
fn step(out: &mut String, track: &Track, bar: &Bar, window: Window, y: f64) {
    let (from, until) = (window.x(bar.start_ns), window.x(bar.end_ns));
    let full = until - from;
    let width = if full > THIN {
        full - 1.0
    } else {
        full.max(0.4)
    };
    let rows = bar.number("offshoot.append_rows").unwrap_or(0)
        + bar.number("offshoot.tree_rows").unwrap_or(0);
    let mut about = format!(
        "{}, {:.2} ms, {rows} rows",
        bar.name,
        (bar.end_ns - bar.start_ns) as f64 / 1e6
    );
    if bar.is_abandoned() {
        about.push_str(", given up: a commit had made it useless");
    }
    if let Some(walk) = bar.walk {
        let _ = write!(
            about,
            ", {} tokens, {} of {} of the main chain accepted, {}",
            walk.committed,
            walk.accepted,
            walk.submitted,
            if walk.is_hit { "hit" } else { "miss" }
        );
    }
    let role = escape(track.role());
    let gone = if bar.is_abandoned() { " gone" } else { "" };
    let _ = write!(
        out,
        "<rect x=\"{from:.1}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{BAR}\" class=\"{role}{gone}\"><title>{about}</title></rect>"
    );
    let Some(walk) = bar.walk else {
        return;
    };
    if full > 26.0 {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.0}\" class=\"on\" font-size=\"13\" font-weight=\"600\" pointer-events=\"none\">+{}</text>",
            from + 5.0,
            y + 17.0,
            walk.committed
        );
    }
    // The main chain: what was accepted of it, and what was rolled back.
    let chain = (width - 22.0).max(0.0);
    if walk.submitted > 0 && chain > 4.0 {
        let accepted = chain * walk.accepted as f64 / walk.submitted as f64;
        let top = y + BAR + 6.0;
        if walk.accepted > 0 {
            let _ = write!(
                out,
                "<rect x=\"{from:.1}\" y=\"{top:.0}\" width=\"{accepted:.1}\" height=\"7\" class=\"ok\"/>"
            );
        }
        if walk.submitted > walk.accepted {
            let _ = write!(
                out,
                "<rect x=\"{:.1}\" y=\"{top:.0}\" width=\"{:.1}\" height=\"7\" class=\"back\"/>",
                from + accepted,
                chain - accepted
            );
        }
    }
    let (x, y) = (until - 11.0, y + BAR + 9.5);
    if full > 24.0 {
        let _ = match walk.is_hit {
            true => write!(
                out,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" class=\"hit\"/>"
            ),
            false => write!(
                out,
                "<path d=\"M{:.1} {:.1}l8 8m0 -8l-8 8\" class=\"miss\"/>",
                x - 4.0,
                y - 4.0
            ),
        };
    }
}

/// What marks mean: a drawing of 26 by 16, and words.
const KEY: [(&str, &str); 6] = [
    (
        "<rect width=\"26\" height=\"16\" class=\"target\"/><text x=\"4\" y=\"12.5\" class=\"on\" font-size=\"12\" font-weight=\"600\">+3</text>",
        "step; of a target with the tokens it committed",
    ),
    (
        "<rect width=\"26\" height=\"16\" class=\"draft gone\"/>",
        "given up: a commit had made it useless",
    ),
    (
        "<rect width=\"26\" height=\"16\" fill=\"url(#idle)\"/>",
        "idle",
    ),
    (
        "<rect y=\"5\" width=\"13\" height=\"7\" class=\"ok\"/><rect x=\"13\" y=\"5\" width=\"13\" height=\"7\" class=\"back\"/>",
        "main chain: accepted, rolled back",
    ),
    (
        "<circle cx=\"13\" cy=\"8\" r=\"4.5\" class=\"hit\"/>",
        "hit: the next step has guesses",
    ),
    (
        "<path d=\"M9 4l8 8m0 -8l-8 8\" class=\"miss\"/>",
        "miss: nobody had guessed the last token",
    ),
];

/// The section of a page.
pub(super) fn section(stories: &[Story]) -> String {
    let mut out = String::from(
        "<p>The first traced request of each strategy, on one scale. A target that waits, or a draft, shows as a gap.</p>\n\
         <ul class=\"key\">",
    );
    for (drawing, words) in KEY {
        let _ = write!(
            out,
            "<li><svg width=\"26\" height=\"16\" aria-hidden=\"true\">{drawing}</svg>{words}</li>"
        );
    }
    out.push_str("</ul>\n");
    let all: Vec<&Story> = stories.iter().collect();
    let scale = scale(&all);
    for story in stories {
        let Some(timeline) = story.timelines.first() else {
            continue;
        };
        let steps = target_steps(timeline);
        let (Some(first), Some(last)) = (steps.first(), steps.get(STEPS.min(steps.len()) - 1))
        else {
            continue;
        };
        let window = Window {
            from_ns: first.start_ns,
            until_ns: last.end_ns,
            scale,
        };
        let workers = workers(timeline);
        let height = TOP + workers.iter().map(|(_, track)| height(track)).sum::<f64>();
        let label = escape(&story.label);
        let cut = match steps.len() > STEPS {
            true => format!(", the first {STEPS} of {} target steps", steps.len()),
            false => String::new(),
        };
        let _ = write!(
            out,
            "<h3>{label}</h3>\n<p class=\"note\">{}{cut}</p>\n<div class=\"lanes\"><svg width=\"{LEFT}\" height=\"{height:.0}\" \
             role=\"img\" aria-label=\"Lanes of {label}\">{}</svg><div class=\"scroll\" tabindex=\"0\" role=\"region\" \
             aria-label=\"Timeline of {label}\"><svg width=\"{:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{}\">{}</svg>\
             </div></div>\n",
            told(timeline, window),
            names(&workers),
            window.width().ceil(),
            told(timeline, window),
            lanes(&workers, window)
        );
    }
    out
}

/// A window in words.
fn told(timeline: &Timeline, window: Window) -> String {
    let steps = target_steps(timeline);
    let within = |bar: &&&Bar| bar.start_ns >= window.from_ns && bar.end_ns <= window.until_ns;
    let steps: Vec<&&Bar> = steps.iter().filter(within).collect();
    let walks = || steps.iter().filter_map(|bar| bar.walk);
    let busy: u64 = steps.iter().map(|bar| bar.end_ns - bar.start_ns).sum();
    let whole = (window.until_ns - window.from_ns).max(1);
    format!(
        "{} tokens in {} target steps and {:.0} ms; target busy {:.0} %; {} hits, {} misses",
        walks().map(|walk| walk.committed).sum::<u64>(),
        steps.len(),
        window.ms(),
        100.0 * busy as f64 / whole as f64,
        walks().filter(|walk| walk.is_hit).count(),
        walks().filter(|walk| !walk.is_hit).count(),
    )
}

/// Milliseconds of a picture, in steps of a target.
const PICTURE_STEPS: f64 = 12.0;
/// Steps at the beginning that a picture leaves out: the prompt, and a tree that is still empty.
const SKIPPED: usize = 3;

/// A picture of its own: the same time of each strategy, one below the other. None without a timeline.
pub(crate) fn picture(stories: &[Story]) -> Option<String> {
    let told_of: Vec<&Story> = (stories.iter())
        .filter(|story| !story.timelines.is_empty())
        .collect();
    let scale = scale(&told_of);
    let length_ns = (PICTURE_STEPS * STEP_WIDTH / scale * 1e6) as u64;
    let width = LEFT + PICTURE_STEPS * STEP_WIDTH + 8.0;
    let mut body = String::new();
    let mut y = 4.0;
    for story in told_of {
        let timeline = story.timelines.first()?;
        let steps = target_steps(timeline);
        let first = steps.get(SKIPPED.min(steps.len().saturating_sub(1)))?;
        let window = Window {
            from_ns: first.start_ns,
            until_ns: (first.start_ns + length_ns).min(steps.last()?.end_ns),
            scale,
        };
        let workers = workers(timeline);
        let _ = write!(
            body,
            "<text x=\"8\" y=\"{:.0}\" class=\"say\" font-size=\"15\" font-weight=\"700\">{}</text><text x=\"{:.0}\" y=\"{:.0}\" \
             class=\"mute\" font-size=\"13\">{}</text>\n<g transform=\"translate(0 {:.0})\">{}</g>\n<g transform=\"translate({LEFT} \
             {:.0})\">{}</g>\n",
            y + 18.0,
            escape(&story.label),
            // As wide as such letters are.
            20.0 + 10.0 * story.label.chars().count() as f64,
            y + 18.0,
            told(timeline, window),
            y + 24.0,
            names(&workers),
            y + 24.0,
            lanes(&workers, window)
        );
        y += 30.0 + TOP + workers.iter().map(|(_, track)| height(track)).sum::<f64>();
    }
    if body.is_empty() {
        return None;
    }
    let mut x = 8.0;
    for (drawing, words) in KEY {
        let wide = 46.0 + 7.3 * words.chars().count() as f64;
        if x + wide > width {
            (x, y) = (8.0, y + 22.0);
        }
        let _ = writeln!(
            body,
            "<g transform=\"translate({x:.0} {y:.0})\">{drawing}<text x=\"32\" y=\"12.5\" class=\"say\" font-size=\"13\">{words}</text></g>"
        );
        x += wide;
    }
    Some(standalone(width, y + 28.0, &body))
}

/// An SVG with its own colours.
pub(super) fn standalone(width: f64, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif\">\n<style>{}</style>{PATTERNS}\n<rect \
         width=\"100%\" height=\"100%\" rx=\"6\" fill=\"var(--page)\"/>\n{body}</svg>\n",
        COLOURS.replace('\n', "")
    )
}
