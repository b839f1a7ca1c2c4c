//! The page of sample completions.

use std::fmt::Write;

use super::report::Evaluation;

/// The samples of every family, in Markdown; what a model wrote stands behind a mark.
pub(super) fn page(evaluation: &Evaluation) -> String {
    let mut out = String::from(
        "# Sample completions\n\nThe target's greedy completions of held-out functions, cut at the function's closing \
         brace. A line of dashes stands between what was given and what was written.\n",
    );
    for family in &evaluation.families {
        if evaluation.families.len() > 1 {
            let _ = write!(out, "\n## Family: {}\n", family.label);
        }
        for sample in &family.completions.samples {
            let verdict = if sample.parsed {
                "parses"
            } else {
                "does not parse"
            };
            let fence = fence(&[&sample.prompt, &sample.completion]);
            let _ = write!(
                out,
                "\n`{}`, {verdict}:\n\n{fence}rust\n{}// --------\n{}\n{fence}\n",
                sample.source,
                sample.prompt,
                sample.completion.trim_end()
            );
        }
    }
    out
}

/// A fence that no line of the texts closes.
fn fence(texts: &[&str]) -> String {
    let longest = texts
        .iter()
        .flat_map(|text| text.split(|c| c != '`'))
        .map(str::len)
        .max();
    "`".repeat(longest.unwrap_or(0).max(2) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_longer_than_any_in_the_text() {
        assert_eq!(fence(&["fn", "a"]), "```");
        assert_eq!(fence(&["/// ```", "/// `````"]), "``````");
    }
}
