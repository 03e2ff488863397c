//! `ballast reproduce`: runs the papers' experiments and says which claims hold.
//!
//! Everything runs on virtual time, on the host or (P4-E5) in QEMU by instruction count; two runs print and write the same bytes.

mod p2;
mod p4;

use std::{io::Write, path::Path};

use harness::experiment::Outcome;

use crate::error::Error;

/// One paper: its experiments and how to run one.
pub struct Paper {
    /// Its name, such as "P2".
    pub name: &'static str,
    /// Names of its experiments.
    pub ids: &'static [&'static str],
    /// Runs one; nothing if there is none of this name.
    pub run: fn(&str) -> Result<Option<Outcome>, Error>,
}

/// The papers that can be reproduced.
const PAPERS: &[Paper] = &[p2::PAPER, p4::PAPER];

/// The experiments that `selectors` name: a paper ("P2"), an experiment ("P2-E3"), nothing for all.
fn select(selectors: &[String]) -> Result<Vec<(&'static Paper, &'static str)>, Error> {
    let all = PAPERS.iter().flat_map(|paper| paper.ids.iter().map(move |id| (paper, *id)));
    let names = |selector: &str, paper: &Paper, id: &str| {
        selector.eq_ignore_ascii_case(paper.name) || selector.eq_ignore_ascii_case(id)
    };
    let unknown = |s: &&String| !all.clone().any(|(paper, id)| names(s, paper, id));
    if let Some(unknown) = selectors.iter().find(unknown) {
        let papers: Vec<&str> = PAPERS.iter().map(|paper| paper.name).collect();
        return Err(Error::Input(format!(
            "no experiment {unknown:?}: say a paper ({}) or an experiment such as {}",
            papers.join(", "),
            PAPERS.first().and_then(|paper| paper.ids.first()).unwrap_or(&"P2-E1"),
        )));
    }
    let wanted = |(paper, id): &(&Paper, &str)| {
        selectors.is_empty() || selectors.iter().any(|s| names(s, paper, id))
    };
    Ok(all.filter(wanted).collect())
}

/// Runs the selected experiments, prints tables (or one JSON object) and writes the plots into `plots`.
///
/// # Errors
///
/// [`Error::Input`] for a name that is none, [`Error::Wrong`] if a claim is not reproduced, [`Error::Build`] if a file
/// cannot be written.
pub fn run(
    selectors: &[String],
    json: bool,
    plots: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let mut failed = Vec::new();
    let mut objects = Vec::new();
    for (paper, id) in select(selectors)? {
        let Some(outcome) = (paper.run)(id)? else { continue };
        if !outcome.is_reproduced() {
            failed.push(id);
        }
        if let Some(folder) = plots {
            write_plots(folder, &outcome)?;
        }
        if json {
            objects.push(format!("\"{id}\": {}", outcome.json()));
        } else {
            writeln!(out, "{}", outcome.table()).map_err(Error::file("standard output"))?;
        }
    }
    if json {
        writeln!(out, "{{{}}}", objects.join(",\n")).map_err(Error::file("standard output"))?;
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Error::Wrong(format!("not reproduced: {}", failed.join(", "))))
    }
}

fn write_plots(folder: &Path, outcome: &Outcome) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::file(folder))?;
    for plot in &outcome.plots {
        let path = folder.join(format!("{}.svg", plot.name));
        std::fs::write(&path, plot.svg()).map_err(Error::file(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_papers_and_experiments() {
        let count = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            select(&names).map(|chosen| chosen.len())
        };
        assert_eq!(count(&["p2"]).unwrap(), 10);
        assert_eq!(count(&["P2-E3"]).unwrap(), 1);
        assert!(count(&[]).unwrap() >= 10);
        assert!(matches!(count(&["P9"]), Err(Error::Input(_))));
    }

    #[test]
    fn an_experiment_prints_a_json_object() {
        let mut out = Vec::new();
        run(&["P2-E9".to_owned()], true, None, &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["P2-E9"]["verdict"], "pass");
    }
}
