//! Turns the servers' binary logs into text: the strings never leave the host.

use crate::image::program;
use crate::session::server_name;
use defmt_decoder::{DecodeError, Locations, StreamDecoder, Table};
use protocol::link::ServerId;
use std::collections::BTreeMap;

type Stream = Box<dyn StreamDecoder + Send + Sync>;

/// What one program's ELF says about its log messages.
struct Program {
    table: &'static Table,
    locations: Locations,
}

/// Decoders of all servers' streams.
#[derive(Default)]
pub struct Decoder {
    programs: BTreeMap<&'static str, Option<Program>>,
    streams: BTreeMap<ServerId, Stream>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

const fn package(server: ServerId) -> &'static str {
    match server {
        ServerId::Root => "root-task",
        ServerId::Mem => "mem-server",
        ServerId::Io(_) => "io-sched-server",
        ServerId::Vmm(_) => "vmm-server",
    }
}

fn load(package: &str) -> Option<Program> {
    let elf = std::fs::read(program(package).ok()?).ok()?;
    let table = Table::parse(&elf).ok()??;
    let locations = table.get_locations(&elf).unwrap_or_default();
    // A program's table lives as long as the process: a handful of them, each loaded once.
    Some(Program { table: Box::leak(Box::new(table)), locations })
}

impl Decoder {
    /// The lines completed by `data`, the next bytes of `server`'s stream.
    pub fn lines(&mut self, server: ServerId, data: &[u8]) -> Vec<String> {
        let name = server_name(server);
        let package = package(server);
        let known = self.programs.entry(package).or_insert_with(|| load(package));
        let Some(program) = known else {
            return vec![format!("{name}: {} bytes of log without a table", data.len())];
        };
        let table = program.table;
        let stream = self.streams.entry(server).or_insert_with(|| table.new_stream_decoder());
        stream.received(data);
        let mut lines = Vec::new();
        loop {
            match stream.decode() {
                Ok(frame) => {
                    let time = frame.display_timestamp().map(|time| time.to_string());
                    let level = frame.level().map_or("", |level| level.as_str()).to_uppercase();
                    let place = program.locations.get(&frame.index()).map(|location| {
                        let file = &location.file;
                        let file = file.strip_prefix(crate::WORKSPACE).unwrap_or(file);
                        format!(" ({}:{})", file.display(), location.line)
                    });
                    lines.push(format!(
                        "[{:>12}] {name}: {level:5} {}{}",
                        time.unwrap_or_default(),
                        frame.display_message(),
                        place.unwrap_or_default()
                    ));
                }
                Err(DecodeError::UnexpectedEof) => return lines,
                Err(DecodeError::Malformed) => {
                    lines.push(format!("{name}: a damaged log line"));
                }
            }
        }
    }
}
