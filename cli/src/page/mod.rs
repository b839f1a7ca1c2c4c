//! The page of a bench: one HTML file without scripts, which fetches nothing. Tables of strategies by the devices they use,
//! what each worker did in a traced request, and whose guess each token was.
//!
//! Nothing is told by colour alone, light and dark follow the reader's settings, and wide parts scroll on their own.

mod compare;
mod guesser;
mod lanes;
mod words;

use std::fmt::Write;

pub(crate) use guesser::Guesser;
pub(crate) use lanes::picture as timeline_picture;
pub(crate) use words::picture as text_picture;

use crate::bench::Report;
use crate::trace::{Timeline, escape};

const COLOURS: &str = include_str!("colours.css");
const STYLE: &str = include_str!("style.css");

/// A token and whose guess it was.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) guesser: Guesser,
}

/// What the traced requests of one contender tell.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    pub(crate) label: String,
    /// The end of the prompt of the first request.
    pub(crate) prompt: String,
    /// The text of the first request.
    pub(crate) pieces: Vec<Piece>,
    /// Of all requests.
    pub(crate) guessers: Vec<Guesser>,
    /// Of each request.
    pub(crate) timelines: Vec<Timeline>,
}

impl Story {
    /// Without any request yet.
    pub(crate) fn new(label: String) -> Story {
        Story {
            label,
            prompt: String::new(),
            pieces: Vec::new(),
            guessers: Vec::new(),
            timelines: Vec::new(),
        }
    }
}

/// The page. Stories are those of the report's strategies, in their order; there may be none.
pub(crate) fn page(report: &Report, stories: &[Story]) -> String {
    let mut out = String::new();
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>Offshoot bench</title>\n<style>\n{COLOURS}{STYLE}\
         </style>\n</head>\n<body>\n{}<main>\n<h1>Offshoot bench</h1>\n",
        lanes::patterns(
            "width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\""
        )
    );
    out.push_str(&compare::heading(report));
    let has_stories = stories.iter().any(|story| !story.timelines.is_empty());
    let sections = [
        ("speed", "Speed", true),
        ("workers", "Workers", true),
        ("misses", "Misses", true),
        ("timeline", "Timeline", has_stories),
        ("positions", "Acceptance by position", has_stories),
        ("text", "Who guessed the text", has_stories),
    ];
    out.push_str("<nav aria-label=\"Sections\">");
    for (id, title, _) in sections.iter().filter(|(.., is_there)| *is_there) {
        let _ = write!(out, "<a href=\"#{id}\">{title}</a> ");
    }
    out.push_str("</nav>\n");
    for (id, title, _) in sections.into_iter().filter(|(.., is_there)| *is_there) {
        let _ = writeln!(
            out,
            "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>"
        );
        out.push_str(&match id {
            "speed" => compare::speed(report),
            "workers" => compare::workers(report),
            "misses" => compare::misses(report),
            "timeline" => lanes::section(stories),
            "positions" => compare::positions(stories),
            _ => words::section(stories),
        });
        out.push_str("</section>\n");
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The name of a strategy, with places where a line may be broken.
fn breakable(label: &str) -> String {
    escape(label).replace(':', ":<wbr>")
}

/// A table that scrolls by itself; the first cell of each row is its heading. Cells are HTML.
fn table(caption: &str, headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">\n<table>\n<caption>{0}</caption>\n<thead><tr>",
        escape(caption)
    );
    for heading in headings {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(heading));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = match (column, cell.strip_prefix('\u{0}')) {
                (0, _) => write!(out, "<th scope=\"row\">{cell}</th>"),
                // A cell that brings its own tag.
                (_, Some(whole)) => write!(out, "{whole}"),
                (_, None) => write!(out, "<td>{cell}</td>"),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    out
}
