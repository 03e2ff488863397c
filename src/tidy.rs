//! Rules of this repository that no compiler checks: a test like any other.

use crate::WORKSPACE;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest function outside [`LONG`], in lines.
const LINES_MAX: usize = 70;

/// Functions that stay longer: one table, one sequence of steps, or one hot path that splitting would only hide.
const LONG: [(&str, &str); 18] = [
    ("harness/src/p4/sharing.rs", "storm"),
    ("kernel/src/arch/x86_64/init.rs", "boot"),
    ("kernel/src/boot/initial.rs", "build"),
    ("kernel/src/boot/loader.rs", "multiboot2"),
    ("kernel/src/cap/delete.rs", "finalise"),
    ("kernel/src/ipc/fast.rs", "fast_reply_recv"),
    ("kernel/src/model/check.rs", "spaces"),
    ("kernel/src/model/fuzz.rs", "message"),
    ("kernel/src/model/guests.rs", "torture"),
    ("kernel/src/model/world.rs", "new"),
    ("kernel/src/object/thread.rs", "decode_tcb"),
    ("kernel/src/syscall/invoke.rs", "invoke"),
    ("mem-server/src/edge/boot.rs", "start"),
    ("mem-server/src/faults.rs", "fault_in_slow"),
    ("root-task/src/edge/servers.rs", "make_vmm"),
    ("vmm-server/src/emulate/decode.rs", "one_byte"),
    ("vmm-server/src/emulate/execute.rs", "execute"),
    ("vmm-server/src/io.rs", "exit_string_io"),
];

/// Files under version control with their contents; those that are no text are left out.
fn files(ending: &str) -> Vec<(String, String)> {
    let output = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard"])
        .current_dir(WORKSPACE)
        .output();
    let listed = String::from_utf8(output.unwrap().stdout).unwrap();
    let read = |name: &str| {
        let text = std::fs::read_to_string(Path::new(WORKSPACE).join(name)).ok()?;
        Some((name.to_owned(), text))
    };
    listed.lines().filter(|name| name.ends_with(ending)).filter_map(read).collect()
}

/// Names and lengths of the functions of a formatted file: each ends with a brace as far in as it begins.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = &line[..line.len() - code.len()];
        let before = ["pub ", "pub(crate) ", "pub(super) ", "const ", "unsafe ", "extern \"C\" "];
        let mut rest = code;
        while let Some(shorter) = before.iter().find_map(|word| rest.strip_prefix(word)) {
            rest = shorter;
        }
        let Some(rest) = rest.strip_prefix("fn ") else { continue };
        let name = rest.split(['(', '<']).next().unwrap_or(rest);
        // A declaration without a body ends with a semicolon as far in.
        let closes = |line: &&str| {
            let tail = line.strip_prefix(indent).unwrap_or(" ");
            tail == "}" || tail.starts_with(')') && tail.ends_with(';')
        };
        if let Some(length) = lines[start..].iter().position(closes)
            && !code.ends_with([';', '}'])
            && lines[start + length].ends_with('}')
        {
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn functions_are_short_but_the_named() {
    let mut long = Vec::new();
    for (file, text) in files(".rs") {
        for (name, length) in functions(&text) {
            if length > LINES_MAX && !LONG.contains(&(file.as_str(), name)) {
                long.push(format!("{file}: {name} has {length} lines"));
            }
        }
    }
    assert!(long.is_empty(), "split, or name with a reason in LONG:\n{}", long.join("\n"));
}

#[test]
fn the_named_long_functions_are_long() {
    let files = files(".rs");
    for (file, name) in LONG {
        let is_long = files.iter().filter(|(path, _)| path == file).any(|(_, text)| {
            functions(text).iter().any(|(found, length)| *found == name && *length > LINES_MAX)
        });
        assert!(is_long, "{file}: {name} is short now: take it out of LONG");
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = files(".rs").into_iter().filter(|(_, text)| !text.starts_with("//!"));
    let silent: Vec<String> =
        silent.map(|(file, _)| file).filter(|file| file != "runtime/link.rs").collect();
    assert!(silent.is_empty(), "no `//!` line at the top of {silent:?}");
}

#[test]
fn unsafe_code_is_where_a_note_says_why() {
    let mut modules = Vec::new();
    for (file, text) in files(".rs") {
        let has_unsafe = text.lines().any(|line| {
            let code = line.trim_start();
            !code.starts_with("//")
                && ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                    .iter()
                    .any(|w| code.contains(w))
        });
        if !has_unsafe || file == "src/tidy.rs" {
            continue;
        }
        let says_why = text.contains("UNSAFETY:") || text.contains("unsafe_code, reason");
        assert!(says_why, "{file}: unsafe code without a note that says why it must be");
        modules.push(file);
    }
    println!("modules with unsafe code ({}):\n  {}", modules.len(), modules.join("\n  "));
    let allowed = [
        "kernel/",
        "sel4/",
        "runtime/",
        "root-task/src/edge",
        "mem-server/src/edge",
        "io-sched-server/src",
        "vmm-server/src/edge",
        "vmm-server/src/main.rs",
        "images/guests/",
    ];
    for file in modules {
        assert!(
            allowed.iter().any(|part| file.starts_with(part)),
            "{file}: no unsafe code belongs here"
        );
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = std::fs::read_to_string(Path::new(WORKSPACE).join("Cargo.toml")).unwrap();
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let mut before = "";
    for line in table.lines().take_while(|line| !line.starts_with('[')) {
        if line.contains(" = ") && !line.contains("path = ") && !line.starts_with('#') {
            assert!(before.starts_with('#'), "no reason above: {line}");
        }
        before = line;
    }
}

#[test]
fn links_of_the_docs_lead_somewhere() {
    for (file, text) in files(".md") {
        let folder: PathBuf = Path::new(WORKSPACE).join(&file).parent().unwrap().to_path_buf();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap_or("");
            if !target.is_empty() && !target.contains("://") {
                assert!(folder.join(target).exists(), "{file}: {target} does not exist");
            }
        }
    }
}

#[test]
fn no_text_depends_on_one_machine() {
    // Put together, so that this file does not name them.
    let hosts = [
        ["static.crates", "io"],
        ["index.crates", "io"],
        ["deb.debian", "org"],
        ["static.rust-lang", "org"],
    ];
    let folders = [["/work", "main"], ["/work", "wt"], ["/root", ".cargo"], ["/home", "dev"]];
    let mut words: Vec<String> = hosts.iter().map(|parts| parts.join(".")).collect();
    words.extend(folders.iter().map(|parts| parts.join("/")));
    for (file, text) in files("") {
        // A lock file names where packages were resolved from; cargo writes it.
        if file.ends_with("Cargo.lock") {
            continue;
        }
        for word in &words {
            assert!(!text.contains(word.as_str()), "{file} names {word}");
        }
    }
}

#[test]
fn function_lengths_are_counted() {
    let text = "fn one() {\n}\nimpl A {\n    pub const fn two(\n        a: u8,\n    ) -> u8 {\n        a\n    }\n    fn three();\n    fn four(\n        a: u8,\n    );\n}\n";
    assert_eq!(functions(text), [("one", 2), ("two", 5)]);
}
