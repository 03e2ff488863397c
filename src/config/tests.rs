//! Every kind of mistake, and the place the error points at.

use super::Config;
use crate::error::Error;
use protocol::system::IoControl;
use std::path::Path;

const GOOD: &str = r#"
[host]
memory = "512M"

[[vm]]
name = "web1"
memory = { size = "128M", reservation = "64M", shares = "high" }
kernel = "debian"
initrd = "debian"
disk = [{ image = "debian", io = { reservation = 10, limit = 100 } }]
"#;

fn complaint(text: &str) -> String {
    match Config::parse(text, Path::new("systems/test.toml")) {
        Err(Error::Input(text)) => text,
        Err(other) => panic!("not an input error: {other}"),
        Ok(_) => panic!("accepted"),
    }
}

/// `GOOD` with one text replaced.
fn spoilt(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    complaint(&GOOD.replace(from, to))
}

#[test]
fn a_good_file_is_read() {
    let config = Config::parse(GOOD, Path::new("systems/test.toml")).unwrap();
    let vm = &config.system.vms[0];
    assert_eq!(config.system.name.as_str(), "test");
    assert_eq!(vm.memory.size.bytes(), 128 << 20);
    assert_eq!(vm.memory.limit, vm.memory.size);
    assert_eq!(vm.memory.shares, 2000);
    assert_eq!(vm.disks[0].partition.as_str(), "web1");
    assert_eq!(vm.disks[0].io.limit, Some(100));
    assert!(vm.cmdline.contains("root=/dev/vda"));
    assert_eq!(config.disks[0].label, "web1");
    assert_eq!(config.artefacts.len(), 2);
}

#[test]
fn an_unknown_key_is_shown_with_a_caret() {
    let text = spoilt("reservation = \"64M\"", "reservatoin = \"64M\"");
    assert!(text.starts_with("systems/test.toml:7:"), "{text}");
    assert!(text.contains("reservatoin") && text.contains("^^^"), "{text}");
    assert!(text.contains("cure:"), "{text}");
}

#[test]
fn an_impossible_sum_names_the_numbers() {
    let text = spoilt("\"512M\"", "\"80M\"");
    assert!(text.contains("MiB for VMs") && text.contains(":7:"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let text = spoilt("kernel = \"debian\"", "kernel = \"./no/such\"");
    assert!(text.contains("no file systems/./no/such") && text.contains(":8:"), "{text}");
}

#[test]
fn each_rule_has_its_place() {
    for (from, to, line, words) in [
        ("size = \"128M\"", "size = \"128Q\"", 7, "no size"),
        ("size = \"128M\"", "size = 1000", 7, "pages of 4 KiB"),
        ("reservation = \"64M\"", "reservation = \"256M\"", 7, "above the limit"),
        ("shares = \"high\"", "shares = 0", 7, "shares are between"),
        ("shares = \"high\"", "limit = \"256M\"", 7, "above the guest's memory"),
        ("kernel = \"debian\"", "kernel = \"debian\"\nvcpus = 2", 9, "exactly one"),
        ("kernel = \"debian\"", "kernel = \"nothing\"", 8, "no such kernel"),
        ("kernel = \"debian\"", "kernel = \"debian\"\ngroup = \"g\"", 9, "no such group"),
        ("limit = 100", "limit = 5", 10, "above the limit"),
        ("image = \"debian\",", "size = \"1M\",", 10, "does not fit"),
        ("name = \"web1\"", "name = \"web 1\"", 6, "cannot name a VM"),
    ] {
        let text = spoilt(from, to);
        assert!(text.contains(words), "{to}: {text}");
        assert!(text.contains(&format!("test.toml:{line}:")), "{to}: {text}");
    }
}

#[test]
fn swap_has_a_claim_of_its_own() {
    let with =
        |lines: &str| GOOD.replace("memory = \"512M\"", &format!("memory = \"512M\"\n{lines}"));
    let io = |lines: &str| {
        let config = Config::parse(&with(lines), Path::new("systems/test.toml")).unwrap();
        config.system.memory_policy.swap.unwrap().io
    };
    assert_eq!(io("swap = \"64M\""), IoControl::default());
    let claimed =
        "swap = \"64M\"\nswap_io = { reservation = 40, shares = \"low\", limit_bytes = \"20M\" }";
    let (reservation, limit_bytes) = (40, Some(20 << 20));
    let wanted = IoControl { reservation, limit_bytes, shares: 500, ..IoControl::default() };
    assert_eq!(io(claimed), wanted);
    for (claim, words) in [
        ("swap_io = { limit = 10 }", "no swap partition to claim for"),
        ("swap = \"64M\"\nswap_io = { reservation = 9, limit = 3 }", "above the limit"),
        ("swap = \"64M\"\nswap_io = { shares = 0 }", "shares are between"),
        ("swap = \"64M\"\nswap_io = { burst = 300 }", "at most 256 requests"),
        ("swap = \"64M\"\nswap_io = { limit_bytes = \"3 apples\" }", "no size"),
        ("swap = \"64M\"\nswap_io = { limits = 3 }", "unknown field"),
    ] {
        let text = complaint(&with(claim));
        let line = 3 + claim.lines().count();
        let has_place = text.contains(&format!("test.toml:{line}:")) && text.contains("cure:");
        assert!(text.contains(words) && has_place, "{claim}: {text}");
    }
}

#[test]
fn claims_of_groups_and_of_the_machine_have_their_place() {
    for (lines, line, words) in [
        ("tax = 1000", 4, "below 1000 permille"),
        ("[group.a]\n[group.b]\nmemory = { shares = 0 }", 6, "shares are between"),
        ("[group.a]\nmemory = { shares = 1000001 }\n[group.b]", 5, "shares are between"),
        ("[group.a]\nio = { reservation = 9, limit = 3 }", 5, "above the limit"),
    ] {
        let text =
            complaint(&GOOD.replace("memory = \"512M\"", &format!("memory = \"512M\"\n{lines}")));
        let has_place = text.contains(&format!("test.toml:{line}:")) && text.contains("cure:");
        assert!(text.contains(words) && has_place, "{lines}: {text}");
    }
}

#[test]
fn two_vms_of_one_name_are_refused() {
    let text = complaint(&format!("{GOOD}\n{}", &GOOD[GOOD.find("[[vm]]").unwrap()..]));
    assert!(text.contains("a VM of this name"), "{text}");
}

#[test]
fn every_shipped_system_is_good() {
    let folder = Path::new(crate::WORKSPACE).join("images/systems");
    for name in ["two-linux", "overcommit", "bench", "bench-linux"] {
        let loaded = Config::load(&folder.join(name).with_extension("toml"));
        assert!(loaded.is_ok(), "{name}: {loaded:?}");
    }
    assert!(super::load_vm(&folder.join("extra-vm.toml")).is_ok());
}

#[test]
fn what_is_no_toml_is_refused() {
    let text = complaint("[host\n");
    assert!(text.contains("test.toml:1:"), "{text}");
}

/// Every description is answered, never by a panic: the examples with bytes replaced, cut out, doubled and swapped.
#[test]
fn mutated_descriptions_are_read_or_refused() {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below.max(1)
    };
    let overcommit = include_str!("../../images/systems/overcommit.toml");
    let values = [
        "-1",
        "0",
        "1e400",
        "\"64M\"",
        "\"99999999999T\"",
        "[]",
        "{}",
        "true",
        "\"\"",
        "\u{1f4a9}",
    ];
    let mut refused = 0;
    for round in 0..4000 {
        let mut text = Vec::from(if round % 2 == 0 { GOOD } else { overcommit });
        for _ in 0..=random(4) {
            let (from, to) = (random(text.len()), random(text.len()));
            let (from, to) = (from.min(to), from.max(to).min(from.min(to) + 40));
            match random(4) {
                0 => text[from] = b" \"=[]{},.#\n\x000aM-"[random(16)],
                1 => drop(text.drain(from..to)),
                2 => {
                    let part = text[from..to].to_vec();
                    let at = random(text.len());
                    text.splice(at..at, part);
                }
                _ => {
                    let start = text[from..].iter().position(|byte| *byte == b'=');
                    let Some(start) = start.map(|at| from + at + 1) else { continue };
                    let rest = text[start..].iter().position(|byte| b",}\n".contains(byte));
                    let end = rest.map_or(text.len(), |at| start + at);
                    text.splice(start..end, values[random(values.len())].bytes());
                }
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        match Config::parse(&text, Path::new("systems/test.toml")) {
            Ok(_) => {}
            Err(Error::Input(why)) => {
                assert!(why.starts_with("systems/test.toml"), "says where: {why}");
                refused += 1;
            }
            Err(other) => panic!("not an input error: {other}"),
        }
    }
    assert!(refused > 1000, "only {refused} were bad: the mutation does not bite");
}

#[test]
fn a_disk_can_be_modelled() {
    use protocol::system::DiskModel;
    let with = |model: &str| GOOD.replace("[host]", &format!("[host]\ndisk_model = {model}"));
    let read = |model: &str| {
        let config = Config::parse(&with(model), Path::new("systems/test.toml")).unwrap();
        config.system.disk_model.unwrap()
    };
    assert_eq!(read("\"hp-97560\""), DiskModel::Hp97560);
    assert_eq!(read("{ ssd = { channels = 8 } }"), DiskModel::Ssd { channels: 8 });
    let bucket = DiskModel::Bucket { requests_per_second: 1000, burst: 0 };
    assert_eq!(read("{ bucket = { iops = 1000 } }"), bucket);
    let DiskModel::Positioning { position, bytes_per_second } =
        read("{ positioning = { micros = 5000, bandwidth = \"60M\" } }")
    else {
        panic!("another model");
    };
    assert_eq!((position.0, bytes_per_second), (5_000_000, 60 << 20));
    let array = "{ array = { iops = 1600, later = [{ from = 20, iops = 1520 }] } }";
    let DiskModel::Array { steps } = read(array) else { panic!("another model") };
    assert_eq!((steps.len(), steps[1].requests_per_second), (2, 1520));
    assert_eq!(steps[1].from.0, 20_000_000_000);
}

#[test]
fn a_model_with_impossible_numbers_is_pointed_at() {
    for model in [
        "{ array = { iops = 0 } }",
        "{ array = { iops = 9, later = [{ from = 0, iops = 8 }] } }",
        "{ ssd = { channels = 33 } }",
    ] {
        let text = complaint(&GOOD.replace("[host]", &format!("[host]\ndisk_model = {model}")));
        assert!(text.contains(":3:14:") && text.contains("out of range"), "{text}");
    }
    let text = spoilt("[host]", "[host]\ndisk_model = \"hp-97561\"");
    assert!(text.contains("unknown variant") && text.contains("^^^"), "{text}");
}
