//! Names for the addresses a kernel panic prints.

use crate::image::program;
use elf::ElfBytes;
use elf::endian::LittleEndian;

/// Start of the kernel image: nothing below is a kernel address.
const KERNEL_START: u64 = 0xffff_ffff_8000_0000;

struct Symbol {
    start: u64,
    size: u64,
    name: String,
}

fn kernel_symbols() -> Vec<Symbol> {
    let Ok(bytes) =
        program("kernel").and_then(|path| std::fs::read(&path).map_err(crate::Error::file(path)))
    else {
        return Vec::new();
    };
    read_symbols(&bytes).unwrap_or_default()
}

fn read_symbols(bytes: &[u8]) -> Option<Vec<Symbol>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).ok()?;
    let (table, names) = file.symbol_table().ok()??;
    let symbol = |entry: elf::symbol::Symbol| {
        let name = names.get(entry.st_name as usize).ok()?;
        let is_code = entry.st_value >= KERNEL_START && !name.is_empty();
        is_code.then(|| Symbol { start: entry.st_value, size: entry.st_size, name: plain(name) })
    };
    let mut symbols: Vec<Symbol> = table.iter().filter_map(symbol).collect();
    symbols.sort_by_key(|symbol| symbol.start);
    Some(symbols)
}

/// The path in a mangled name: `_ZN6kernel3mem4init17h0123456789abcdefE` is `kernel::mem::init`.
fn plain(name: &str) -> String {
    let Some(mut rest) = name.strip_prefix("_ZN") else { return name.to_owned() };
    let mut parts = Vec::new();
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit())
        && let Ok(length) = rest.get(..end).unwrap_or_default().parse::<usize>()
        && let Some(part) = rest.get(end..end + length)
    {
        let is_hash = part.len() == 17 && part.starts_with('h');
        if !is_hash {
            parts.push(
                part.replace("$LT$", "<")
                    .replace("$GT$", ">")
                    .replace("$u20$", " ")
                    .replace("..", "::"),
            );
        }
        rest = rest.get(end + length..).unwrap_or_default();
    }
    if parts.is_empty() { name.to_owned() } else { parts.join("::") }
}

/// `text` with ` (name+offset)` behind every kernel address in it.
pub fn annotate(text: &str) -> String {
    if !text.contains("ffffffff8") {
        return text.to_owned();
    }
    annotate_with(text, &kernel_symbols())
}

fn annotate_with(text: &str, symbols: &[Symbol]) -> String {
    let mut out = String::new();
    for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let separator = word.get(digits.len()..).unwrap_or_default();
        out.push_str(digits);
        let address = u64::from_str_radix(digits.trim_start_matches("0x"), 16).ok();
        if let Some(address) = address.filter(|&address| address >= KERNEL_START)
            && let Some(symbol) = symbols.iter().rev().find(|symbol| symbol.start <= address)
            && address - symbol.start < symbol.size.max(1)
        {
            out.push_str(&format!(" ({}+{:#x})", symbol.name, address - symbol.start));
        }
        out.push_str(separator);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Symbol, annotate_with, plain};

    #[test]
    fn addresses_get_names() {
        let symbols = [Symbol { start: 0xffff_ffff_8010_0000, size: 0x10, name: "go".to_owned() }];
        let text = annotate_with("at 0xffffffff80100008, 0xffffffff80100010 end", &symbols);
        assert_eq!(text, "at 0xffffffff80100008 (go+0x8), 0xffffffff80100010 end");
    }

    #[test]
    fn mangled_names_are_read() {
        assert_eq!(plain("_ZN6kernel3mem4init17h0123456789abcdefE"), "kernel::mem::init");
        assert_eq!(plain("start32"), "start32");
    }
}
