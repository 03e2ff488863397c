//! What an experiment of a paper brings: figures, the band they must lie in, the verdict, a negative control.

use crate::plot::Plot;

/// One figure: a name, what came out, and what must come out.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// What came out.
    pub value: f64,
    /// What the paper or its model says, if it says a number.
    pub expected: Option<f64>,
    /// Least and most that pass.
    pub band: (f64, f64),
}

impl Figure {
    /// A figure that must lie within `per_cent` of `expected`.
    pub fn near(name: impl Into<String>, value: f64, expected: f64, per_cent: f64) -> Self {
        let slack = expected.abs() * per_cent / 100.0;
        Self {
            name: name.into(),
            value,
            expected: Some(expected),
            band: (expected - slack, expected + slack),
        }
    }

    /// A figure that must lie between two values.
    pub fn between(name: impl Into<String>, value: f64, least: f64, most: f64) -> Self {
        Self { name: name.into(), value, expected: None, band: (least, most) }
    }

    /// Does it pass?
    pub fn passes(&self) -> bool {
        self.value >= self.band.0 && self.value <= self.band.1
    }
}

/// The result of one experiment.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its name in the papers' list, such as "P2-E3".
    pub id: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// The band in words.
    pub band: &'static str,
    /// Its figures.
    pub figures: Vec<Figure>,
    /// What was switched off or broken for the negative control.
    pub control: &'static str,
    /// The control's figures: at least one must fail.
    pub control_figures: Vec<Figure>,
    /// The paper's figure and ours.
    pub plots: Vec<Plot>,
}

impl Outcome {
    /// Do all figures pass?
    pub fn passes(&self) -> bool {
        !self.figures.is_empty() && self.figures.iter().all(Figure::passes)
    }

    /// Does the negative control fail, as it must?
    pub fn control_fails(&self) -> bool {
        !self.control_figures.iter().all(Figure::passes)
    }

    /// Is the claim reproduced: figures pass and the control does not?
    pub fn is_reproduced(&self) -> bool {
        self.passes() && self.control_fails()
    }

    /// A plain-text table of the outcome.
    pub fn table(&self) -> String {
        let mut text = format!("{} {}\n  band: {}\n", self.id, self.title, self.band);
        let mut rows = |heading: &str, figures: &[Figure]| {
            text.push_str(&format!("  {heading}\n"));
            for figure in figures {
                let expected =
                    figure.expected.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
                text.push_str(&format!(
                    "    {:<44} {:>10.2}  expected {:>8}  [{:.2}, {:.2}] {}\n",
                    figure.name,
                    figure.value,
                    expected,
                    figure.band.0,
                    figure.band.1,
                    if figure.passes() { "ok" } else { "FAIL" },
                ));
            }
        };
        rows("figures", &self.figures);
        rows(&format!("negative control: {}", self.control), &self.control_figures);
        let word = |is_so: bool| if is_so { "yes" } else { "NO" };
        text.push_str(&format!(
            "  passes: {}, control fails: {}\n",
            word(self.passes()),
            word(self.control_fails())
        ));
        text
    }

    /// The outcome as one JSON object, without its plots.
    pub fn json(&self) -> String {
        let figures = |figures: &[Figure]| {
            let each = figures.iter().map(|f| {
                format!(
                    "{{\"name\":{},\"value\":{:.4},\"expected\":{},\"least\":{:.4},\"most\":{:.4},\"pass\":{}}}",
                    quote(&f.name),
                    f.value,
                    f.expected.map_or_else(|| "null".to_owned(), |v| format!("{v:.4}")),
                    f.band.0,
                    f.band.1,
                    f.passes()
                )
            });
            each.collect::<Vec<_>>().join(",")
        };
        format!(
            "{{\"id\":{},\"title\":{},\"band\":{},\"verdict\":{},\"figures\":[{}],\"control\":{},\"control_fails\":{},\"control_figures\":[{}]}}",
            quote(self.id),
            quote(self.title),
            quote(self.band),
            quote(if self.is_reproduced() { "pass" } else { "fail" }),
            figures(&self.figures),
            quote(self.control),
            self.control_fails(),
            figures(&self.control_figures),
        )
    }
}

/// A JSON string.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_needs_figures_that_pass_and_a_control_that_fails() {
        let outcome = |value: f64, control: f64| Outcome {
            id: "X-E1",
            title: "\"t\"",
            band: "3 %",
            figures: vec![Figure::near("a", value, 100.0, 3.0)],
            control: "off",
            control_figures: vec![Figure::near("a", control, 100.0, 3.0)],
            plots: Vec::new(),
        };
        assert!(outcome(102.9, 50.0).is_reproduced());
        assert!(!outcome(103.1, 50.0).is_reproduced());
        assert!(!outcome(100.0, 100.0).is_reproduced());
        assert!(outcome(100.0, 50.0).json().contains("\"title\":\"\\\"t\\\"\""));
        assert!(outcome(100.0, 50.0).table().contains("passes: yes, control fails: yes"));
    }
}
