//! A text in the colours of those who had guessed its tokens.

use std::fmt::Write;

use super::lanes::standalone;
use super::{Guesser, Story};
use crate::trace::escape;

/// Shares of guessers in words.
fn told(all: &[Guesser]) -> String {
    let shares = Guesser::shares(all).into_iter();
    let each: Vec<String> = shares
        .map(|(guesser, share)| format!("{} {:.0} %", guesser.name(), 100.0 * share))
        .collect();
    each.join("; ")
}

/// The section of a page.
pub(super) fn section(stories: &[Story]) -> String {
    let mut out = String::from(
        "<p>Each token of the first traced request, by who had guessed it when the target committed it. Where several had, a draft \
         counts first. The text is the same under every strategy that decodes exactly; who guessed it is not.</p>\n<ul class=\"key\">",
    );
    let mut shown: Vec<Guesser> = (stories.iter())
        .flat_map(|story| story.guessers.iter().copied())
        .collect();
    shown.sort();
    shown.dedup();
    for guesser in &shown {
        let _ = write!(
            out,
            "<li><span class=\"g{}\">&nbsp;token&nbsp;</span>{}{}</li>",
            guesser.class(),
            guesser.name(),
            if *guesser == Guesser::Target {
                ": nobody had guessed it"
            } else {
                ""
            }
        );
    }
    out.push_str("</ul>\n");
    for story in stories.iter().filter(|story| !story.pieces.is_empty()) {
        if story
            .guessers
            .iter()
            .all(|&guesser| guesser == Guesser::Target)
        {
            let _ = writeln!(
                out,
                "<h3>{}</h3>\n<p class=\"note\">Nothing was guessed: all {} tokens are the target's own.</p>",
                escape(&story.label),
                story.guessers.len()
            );
            continue;
        }
        let _ = write!(
            out,
            "<h3>{}</h3>\n<p class=\"note\">Of {} tokens in all traced requests: {}.</p>\n<div class=\"share\" aria-hidden=\"true\">",
            escape(&story.label),
            story.guessers.len(),
            told(&story.guessers)
        );
        for (guesser, share) in Guesser::shares(&story.guessers) {
            let _ = write!(
                out,
                "<span class=\"g{}\" style=\"width:{:.2}%\"></span>",
                guesser.class(),
                100.0 * share
            );
        }
        let _ = write!(
            out,
            "</div>\n<pre><span class=\"prompt\">{}</span>",
            escape(&story.prompt)
        );
        for piece in &story.pieces {
            let text = escape(&piece.text)
                .replace('\n', "<span class=\"nl\" aria-hidden=\"true\">⏎</span>\n");
            let _ = write!(
                out,
                "<span class=\"g{}\" title=\"{}\">{text}</span>",
                piece.guesser.class(),
                piece.guesser.name()
            );
        }
        out.push_str("</pre>\n");
    }
    out
}

const COLUMNS: usize = 88;
const CHARACTER: f64 = 9.0;
const LINE: f64 = 27.0;
const LEFT: f64 = 14.0;
/// Characters of a prompt that a picture shows, at most.
const PROMPT: usize = 120;

/// Characters that share a rectangle.
struct Run {
    line: usize,
    column: usize,
    text: String,
    guesser: Option<Guesser>,
}

/// Breaks texts into lines of a fixed width.
fn layout<'a>(texts: impl Iterator<Item = (&'a str, Option<Guesser>)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let (mut line, mut column) = (0, 0);
    for (text, guesser) in texts {
        let mut open: Option<Run> = None;
        for c in text.chars() {
            // A line break of a guessed token is visible.
            let shown = match c {
                '\n' => "⏎".to_owned(),
                '\t' => "    ".to_owned(),
                c => c.to_string(),
            };
            let wide = shown.chars().count();
            if column + wide > COLUMNS {
                runs.extend(open.take());
                (line, column) = (line + 1, 0);
            }
            if c != '\n' || guesser.is_some() {
                let run = open.get_or_insert_with(|| Run {
                    line,
                    column,
                    text: String::new(),
                    guesser,
                });
                run.text.push_str(&shown);
                column += wide;
            }
            if c == '\n' {
                runs.extend(open.take());
                (line, column) = (line + 1, 0);
            }
        }
        runs.extend(open);
    }
    runs
}

/// A picture of its own: the text of the last story that has one.
pub(crate) fn picture(stories: &[Story]) -> Option<String> {
    let story = stories.iter().rfind(|story| !story.pieces.is_empty())?;
    let skipped = story.prompt.chars().count().saturating_sub(PROMPT);
    let prompt: String = story.prompt.chars().skip(skipped).collect();
    // From the beginning of a line on.
    let prompt = match (skipped, prompt.split_once('\n')) {
        (1.., Some((_, rest))) => rest,
        _ => &prompt,
    };
    let prompt = prompt.trim_start_matches('\n');
    let pieces = (story.pieces.iter()).map(|piece| (piece.text.as_str(), Some(piece.guesser)));
    let runs = layout([(prompt, None)].into_iter().chain(pieces));
    let own: Vec<Guesser> = story.pieces.iter().map(|piece| piece.guesser).collect();
    let width = 2.0 * LEFT + COLUMNS as f64 * CHARACTER;
    let mut body = format!(
        "<text x=\"{LEFT}\" y=\"26\" class=\"say\" font-size=\"15\" font-weight=\"700\">{}</text>\n",
        escape(&story.label)
    );
    let (mut x, mut y) = (LEFT, 40.0);
    for (guesser, share) in Guesser::shares(&own) {
        let words = format!("{}: {:.0} %", guesser.name(), 100.0 * share);
        let wide = 46.0 + 7.4 * words.chars().count() as f64;
        if x + wide > width {
            (x, y) = (LEFT, y + 24.0);
        }
        let class = guesser.class();
        let _ = writeln!(
            body,
            "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"26\" height=\"17\" rx=\"3\" class=\"f{class}\"/><path d=\"M{x:.0} {:.0}h26\" \
             class=\"u{class}\"/><text x=\"{:.0}\" y=\"{:.0}\" class=\"say\" font-size=\"13\">{words}</text>",
            y + 16.0,
            x + 33.0,
            y + 13.5
        );
        x += wide;
    }
    let top = y + 36.0;
    let mut lines = 0;
    for run in &runs {
        lines = lines.max(run.line + 1);
        let (x, y) = (
            LEFT + run.column as f64 * CHARACTER,
            top + run.line as f64 * LINE,
        );
        let characters = run.text.chars().count();
        let wide = characters as f64 * CHARACTER;
        if let Some(class) = run.guesser.map(Guesser::class) {
            let _ = write!(
                body,
                "<rect x=\"{:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"20\" rx=\"3\" class=\"f{class}\"/>",
                x + 0.5,
                wide - 1.0
            );
            if class != 't' && class != 'u' {
                let _ = write!(
                    body,
                    "<path d=\"M{:.1} {:.0}h{:.1}\" class=\"u{class}\"/>",
                    x + 0.5,
                    y + 19.0,
                    wide - 1.0
                );
            }
        }
        if !run.text.trim().is_empty() {
            let class = if run.guesser.is_some() { "say" } else { "mute" };
            // Blanks at its beginning are left out, and the rest moved: renderers treat them differently.
            let blanks = characters - run.text.trim_start().chars().count();
            let text = run.text.trim();
            let _ = write!(
                body,
                "<text x=\"{:.1}\" y=\"{:.0}\" class=\"{class}\" font-size=\"15\" \
                 font-family=\"ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace\" textLength=\"{:.1}\" \
                 lengthAdjust=\"spacingAndGlyphs\">{}</text>",
                x + blanks as f64 * CHARACTER,
                y + 15.0,
                text.chars().count() as f64 * CHARACTER,
                escape(text)
            );
        }
        body.push('\n');
    }
    Some(standalone(width, top + lines as f64 * LINE + 10.0, &body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_where_text_is_and_where_there_is_no_room() {
        let long = "x".repeat(COLUMNS - 1);
        let texts = [
            ("a\nb", None),
            ("c\n", Some(Guesser::First)),
            (long.as_str(), Some(Guesser::Target)),
            ("yz", None),
        ];
        let runs: Vec<_> = (layout(texts.into_iter()).into_iter())
            .map(|run| (run.line, run.column, run.text.chars().count()))
            .collect();
        // The break of a guessed token is a sign of its own.
        assert_eq!(
            runs,
            [
                (0, 0, 1),
                (1, 0, 1),
                (1, 1, 2),
                (2, 0, COLUMNS - 1),
                (2, COLUMNS - 1, 1),
                (3, 0, 1)
            ]
        );
    }
}
