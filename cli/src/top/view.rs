//! Draws the figures, the same way for a terminal and as plain text.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Widget};

use super::figures::{Figures, Shares, WorkerFigures};

/// Columns of the plain form; only a long reason of a refusal is cut.
const PLAIN_WIDTH: u16 = 140;
/// Width of the bar that shows how time is spent.
const BAR: usize = 16;
/// Lines above the table.
const HEAD: u16 = 4;

const COLUMNS: [(&str, u16); 11] = [
    ("ROLE", 9),
    ("ADDRESS", 21),
    ("STATE", 10),
    ("SESSIONS", 8),
    ("STEPS/S", 8),
    ("MS/STEP", 8),
    ("ROWS", 5),
    ("BUSY", 5),
    ("BUBBLE", 6),
    ("PARKED", 6),
    ("TIME", BAR as u16),
];

/// Draws one frame. `stale` is the reason why the figures are not current, if they are not.
pub(super) fn draw(
    area: Rect,
    buffer: &mut Buffer,
    cluster: &str,
    figures: &Figures,
    stale: Option<&str>,
) {
    let [head, table] =
        Layout::vertical([Constraint::Length(HEAD), Constraint::Min(0)]).areas(area);
    Paragraph::new(headline(cluster, figures, stale)).render(head, buffer);
    let names = COLUMNS.map(|(name, _)| name);
    let heading = Row::new(names).style(Style::new().add_modifier(Modifier::REVERSED));
    let rows = figures.workers.iter().map(line);
    let widths = COLUMNS.map(|(_, width)| Constraint::Length(width));
    Widget::render(Table::new(rows, widths).header(heading), table, buffer);
}

/// One frame without colours or control characters.
pub(super) fn plain(cluster: &str, figures: &Figures) -> String {
    let lines = usize::from(HEAD) + 1 + figures.workers.len();
    let area = Rect::new(0, 0, PLAIN_WIDTH, u16::try_from(lines).unwrap_or(u16::MAX));
    let mut buffer = Buffer::empty(area);
    draw(area, &mut buffer, cluster, figures, None);
    let mut text = String::new();
    for row in area.rows() {
        let line: String = (row.columns())
            .map(|cell| buffer[(cell.x, cell.y)].symbol())
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn headline<'a>(cluster: &'a str, figures: &Figures, stale: Option<&'a str>) -> Vec<Line<'a>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let seconds = figures.span.as_secs_f64();
    let about = if figures.since_start {
        format!("the {seconds:.1} s since its start")
    } else {
        format!("the last {seconds:.1} s")
    };
    let mut first = Line::from(vec![
        Span::styled(format!("offshoot {cluster}"), bold),
        Span::raw(format!("   over {about}")),
    ]);
    let models = figures.workers.iter().map(|worker| worker.model.as_str());
    if let Some(synthetic) = { models }.find(|model| model.starts_with("synthetic-")) {
        first.push_span(Span::styled(format!("   SYNTHETIC ({synthetic})"), bold));
    }
    let second = Line::from(format!(
        "{} running, {} waiting   {:.1} tok/s   {} tokens total",
        figures.running, figures.waiting, figures.tokens_per_s, figures.tokens
    ));
    let third = match stale {
        Some(stale) => Line::styled(format!("stale: {stale}"), Style::new().fg(Color::Red)),
        None => Line::from(format!(
            "acceptance length {}   hits {}   starved steps {}",
            number(figures.acceptance, 2),
            percent(figures.hit_rate),
            percent(figures.starved)
        )),
    };
    vec![first, second, third, Line::default()]
}

fn line(worker: &WorkerFigures) -> Row<'_> {
    let shares = worker.time;
    let part = |part: fn(Shares) -> f64| percent(shares.map(part));
    // The reason of a refusal takes the rest of the line.
    if worker.state != "ready" && worker.state != "connecting" {
        return Row::new([
            Cell::from(worker.role.as_str()),
            Cell::from(worker.address.as_str()),
            Cell::from(worker.state.as_str()).column_span(9),
        ])
        .style(Style::new().fg(Color::Red));
    }
    let row = Row::new([
        Cell::from(worker.role.as_str()),
        Cell::from(worker.address.as_str()),
        Cell::from(worker.state.as_str()),
        Cell::from(format!("{}/{}", worker.sessions, worker.max_sessions)),
        Cell::from(format!("{:.1}", worker.steps_per_s)),
        Cell::from(number(worker.step_ms, 2)),
        Cell::from(number(worker.rows, 1)),
        Cell::from(part(|shares| shares.busy)),
        Cell::from(part(|shares| shares.bubble)),
        Cell::from(part(|shares| shares.parked)),
        Cell::from(bar(shares)),
    ]);
    if worker.state == "ready" {
        row
    } else {
        row.style(Style::new().fg(Color::Yellow))
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

/// Busy, bubble and parked; the rest is the time of other sessions' steps.
fn bar(shares: Option<Shares>) -> Line<'static> {
    let Some(shares) = shares else {
        return Line::default();
    };
    let mut left = BAR;
    let mut cells = |share: f64| {
        let cells = ((share * BAR as f64).round() as usize).min(left);
        left -= cells;
        cells
    };
    let (busy, bubble, parked) = (
        cells(shares.busy),
        cells(shares.bubble),
        cells(shares.parked),
    );
    Line::from(vec![
        Span::styled("#".repeat(busy), Style::new().fg(Color::Green)),
        Span::styled("o".repeat(bubble), Style::new().fg(Color::Red)),
        Span::styled("-".repeat(parked), Style::new().fg(Color::DarkGray)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::figures::tests::reply;

    #[test]
    fn a_plain_frame_has_a_line_for_each_worker_and_nothing_to_escape() {
        let text = plain("127.0.0.1:7000", &Figures::since_start(&reply(2)));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert!(lines[0].contains("offshoot 127.0.0.1:7000") && lines[0].contains("1.0 s since"));
        assert!(lines[1].contains("2 running, 1 waiting   60.0 tok/s   60 tokens"));
        assert!(lines[2].contains("acceptance length 3.00   hits 70 %   starved steps 10 %"));
        for part in [
            "target",
            "127.0.0.1:7001",
            "ready",
            "2/16",
            "20.00",
            "50 %",
            "12 %",
            "########oo",
        ] {
            assert!(lines[5].contains(part), "{part} is not in {:?}", lines[5]);
        }
        assert!(
            lines[6].contains("refused: it has another vocabulary"),
            "{text}"
        );
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }

    #[test]
    fn stale_figures_are_marked_and_a_small_window_is_no_failure() {
        let figures = Figures::since_start(&reply(1));
        for (width, height) in [(80, 24), (10, 2), (0, 0)] {
            let area = Rect::new(0, 0, width, height);
            let mut buffer = Buffer::empty(area);
            draw(area, &mut buffer, "a:1", &figures, Some("no answer"));
            let shown = format!("{buffer:?}");
            assert_eq!(shown.contains("stale: no answer"), width == 80);
        }
    }
}
