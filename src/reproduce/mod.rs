//! `ballast reproduce`: runs the papers' experiments and says which claims hold.
//!
//! Everything runs on virtual time, on the host or (P4-E5) in QEMU by instruction count; two runs print and write the same
//! bytes. Live runs are with guests in QEMU, whose disk answers by the host's clock: two runs agree within their bands.

mod live;
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
    pub run: Experiment,
    /// Names of those that run with guests on the target.
    pub live_ids: &'static [&'static str],
    /// Runs one of these.
    pub run_live: Experiment,
}

/// Runs the experiment of this name; nothing if there is none.
pub type Experiment = fn(&str) -> Result<Option<Outcome>, Error>;

/// Which runs of the experiments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On modelled machines.
    Modelled,
    /// With guests on the target.
    Live,
}

impl Kind {
    const fn of(self, paper: &Paper) -> (&'static [&'static str], Experiment) {
        match self {
            Self::Modelled => (paper.ids, paper.run),
            Self::Live => (paper.live_ids, paper.run_live),
        }
    }
}

/// The papers that can be reproduced.
const PAPERS: &[Paper] = &[p2::PAPER, p4::PAPER];

/// The experiments that `selectors` name: a paper ("P2"), an experiment ("P2-E3"), nothing for all.
fn select(selectors: &[String], kind: Kind) -> Result<Vec<(Experiment, &'static str)>, Error> {
    let all = PAPERS.iter().flat_map(|paper| {
        let (ids, run) = kind.of(paper);
        ids.iter().map(move |id| (paper.name, run, *id))
    });
    let names = |selector: &str, paper: &str, id: &str| {
        let is = |name: &str| selector.eq_ignore_ascii_case(name);
        is(paper) || is(id) || id.strip_suffix("-live").is_some_and(is)
    };
    let unknown = |s: &&String| !all.clone().any(|(paper, _, id)| names(s, paper, id));
    if let Some(unknown) = selectors.iter().find(unknown) {
        let papers = all.clone().map(|(paper, ..)| paper);
        let mut papers: Vec<&str> = papers.collect();
        papers.dedup();
        return Err(Error::Input(format!(
            "no {}experiment {unknown:?}: say a paper ({}) or an experiment such as {}",
            if kind == Kind::Live { "live " } else { "" },
            papers.join(", "),
            all.clone().next().map_or("P2-E1", |(.., id)| id),
        )));
    }
    let wanted = |(paper, _, id): &(&str, Experiment, &str)| {
        selectors.is_empty() || selectors.iter().any(|s| names(s, paper, id))
    };
    Ok(all.filter(wanted).map(|(_, run, id)| (run, id)).collect())
}

/// Runs the selected experiments, prints tables (or one JSON object) and writes the plots into `plots`. One that cannot be
/// carried out says why in its place, and the others are run all the same.
///
/// # Errors
///
/// [`Error::Input`] for a name that is none, [`Error::Build`] if a file cannot be written; at the end, if an experiment could
/// not be carried out, its error's kind (never [`Error::Wrong`]), else [`Error::Wrong`] if a claim is not reproduced.
pub fn run(
    selectors: &[String],
    kind: Kind,
    json: bool,
    plots: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    run_all(&select(selectors, kind)?, json, plots, out)
}

fn run_all(
    experiments: &[(Experiment, &'static str)],
    json: bool,
    plots: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let standard_output = || Error::file("standard output");
    let (mut failed, mut broken) = (Vec::new(), Vec::new());
    let mut objects = Vec::new();
    for (run, id) in experiments {
        let outcome = match run(id) {
            Ok(Some(outcome)) => outcome,
            Ok(None) => continue,
            Err(error) => {
                if json {
                    objects.push(format!("\"{id}\": {}", no_verdict(id, &error)));
                } else {
                    writeln!(out, "{id} could not be carried out: {error}\n")
                        .map_err(standard_output())?;
                }
                broken.push((*id, error));
                continue;
            }
        };
        if !outcome.is_reproduced() {
            failed.push(*id);
        }
        if let Some(folder) = plots {
            write_plots(folder, &outcome)?;
        }
        if json {
            objects.push(format!("\"{id}\": {}", outcome.json()));
        } else {
            writeln!(out, "{}", outcome.table()).map_err(standard_output())?;
        }
    }
    if json {
        writeln!(out, "{{{}}}", objects.join(",\n")).map_err(standard_output())?;
    }
    verdict(&failed, broken)
}

/// An experiment that could not be carried out, as a JSON object.
fn no_verdict(id: &str, error: &Error) -> String {
    serde_json::json!({ "id": id, "verdict": "error", "error": error.to_string() }).to_string()
}

/// All in one: claims that are `failed`, experiments that are `broken`.
fn verdict(failed: &[&str], mut broken: Vec<(&str, Error)>) -> Result<(), Error> {
    let mut text: Vec<String> = Vec::new();
    if !failed.is_empty() {
        text.push(format!("not reproduced: {}", failed.join(", ")));
    }
    for (id, error) in &broken {
        text.push(format!("{id} could not be carried out: {error}"));
    }
    let text = text.join("\n");
    if broken.is_empty() {
        return if failed.is_empty() { Ok(()) } else { Err(Error::Wrong(text)) };
    }
    Err(match broken.remove(0).1 {
        Error::Crash(_) => Error::Crash(text),
        Error::Input(_) => Error::Input(text),
        Error::Build(_) => Error::Build(text),
        // What the experiment waited for did not come: that says nothing about its claim.
        Error::NoProgress(_) | Error::Wrong(_) => Error::NoProgress(text),
    })
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
        let count = |names: &[&str], kind| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            select(&names, kind).map(|chosen| chosen.len())
        };
        assert_eq!(count(&["p2"], Kind::Modelled).unwrap(), 10);
        assert_eq!(count(&["P2-E3"], Kind::Modelled).unwrap(), 1);
        assert!(count(&[], Kind::Modelled).unwrap() >= 10);
        assert!(matches!(count(&["P9"], Kind::Modelled), Err(Error::Input(_))));
        assert_eq!(count(&["P2"], Kind::Live).unwrap(), live::IDS.len());
        assert_eq!(count(&["P2-E3"], Kind::Live).unwrap(), 1);
        assert_eq!(count(&["p2-e3-live"], Kind::Live).unwrap(), 1);
        assert!(matches!(count(&["P4"], Kind::Live), Err(Error::Input(_))));
        assert!(matches!(count(&["P2-E3-live"], Kind::Modelled), Err(Error::Input(_))));
    }

    #[test]
    fn an_experiment_prints_a_json_object() {
        let mut out = Vec::new();
        run(&["P2-E9".to_owned()], Kind::Modelled, true, None, &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["P2-E9"]["verdict"], "pass");
    }

    /// One experiment cannot be carried out: the others are run and printed, and the exit code says that it is not a claim that
    /// fails.
    #[test]
    fn an_experiment_that_breaks_does_not_take_the_others_with_it() {
        let broken: Experiment = |_| Err(Error::Wrong("the \"VM\" never began".to_owned()));
        let whole: Experiment = |_| Ok(harness::p2::run("P2-E9"));
        let unreproduced: Experiment = |_| {
            let outcome = harness::p2::run("P2-E9");
            Ok(outcome.map(|outcome| Outcome { figures: Vec::new(), ..outcome }))
        };
        let experiments = [(broken, "X-E1"), (whole, "X-E2"), (unreproduced, "X-E3")];
        let mut out = Vec::new();
        let error = run_all(&experiments, true, None, &mut out).unwrap_err();
        assert!(matches!(&error, Error::NoProgress(text) if text.contains("X-E1 could not")));
        assert!(error.to_string().contains("not reproduced: X-E3"));
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["X-E1"]["verdict"], "error");
        assert_eq!(value["X-E1"]["error"], "the \"VM\" never began");
        assert_eq!(value["X-E2"]["verdict"], "pass");
        let mut out = Vec::new();
        run_all(&experiments[..2], false, None, &mut out).unwrap_err();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("X-E1 could not be carried out") && text.contains("passes: yes"));
        let failed = run_all(&experiments[2..], true, None, &mut Vec::new());
        assert!(matches!(failed, Err(Error::Wrong(_))));
    }
}
