//! `tsc`: a program for Linux guests that prints the time-stamp counter in hexadecimal.
//!
//! Under `-icount` that counter is the number of executed instructions, and no program of a minimal Debian shows it.

/// Where the program is loaded.
const VADDR: u64 = 0x40_0000;
/// ELF header and one program header.
const HEADERS: usize = 64 + 56;

/// The machine code: RDTSC, sixteen digits from the last to the first, write(1, ...), exit(0).
const CODE: &[u8] = &[
    0x0f, 0x31, // rdtsc
    0x48, 0xc1, 0xe2, 0x20, // shl rdx, 32
    0x48, 0x09, 0xd0, // or rax, rdx
    0x48, 0x83, 0xec, 0x18, // sub rsp, 24
    0xb9, 0x10, 0x00, 0x00, 0x00, // mov ecx, 16
    0x89, 0xc2, // 1: mov edx, eax
    0x83, 0xe2, 0x0f, // and edx, 15
    0x80, 0xfa, 0x0a, // cmp dl, 10
    0x72, 0x03, // jb 2f
    0x80, 0xc2, 0x27, // add dl, 'a' - '0' - 10
    0x80, 0xc2, 0x30, // 2: add dl, '0'
    0x88, 0x54, 0x0c, 0xff, // mov [rsp + rcx - 1], dl
    0x48, 0xc1, 0xe8, 0x04, // shr rax, 4
    0xe2, 0xe6, // loop 1b
    0xc6, 0x44, 0x24, 0x10, 0x0a, // mov byte [rsp + 16], '\n'
    0x6a, 0x01, 0x58, // push 1; pop rax (write)
    0x89, 0xc7, // mov edi, eax (standard output)
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0x6a, 0x11, 0x5a, // push 17; pop rdx
    0x0f, 0x05, // syscall
    0x6a, 0x3c, 0x58, // push 60; pop rax (exit)
    0x31, 0xff, // xor edi, edi
    0x0f, 0x05, // syscall
];

/// The program as a static ELF.
pub fn program() -> Vec<u8> {
    let size = (HEADERS + CODE.len()) as u64;
    let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes()); // executable, x86-64
    }
    file.extend(1u32.to_le_bytes());
    for word in [VADDR + HEADERS as u64, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes()); // to be loaded, readable and executable
    }
    for word in [0, VADDR, VADDR, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE);
    file
}

#[cfg(test)]
mod tests {
    use super::program;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn it_prints_a_counter_that_grows() {
        let path = std::env::temp_dir().join(format!("ballast-tsc-{}", std::process::id()));
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let read = || {
            let output = Command::new(&path).output().unwrap();
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text.len(), 17, "{text:?}");
            u64::from_str_radix(text.trim_end(), 16).unwrap()
        };
        let (first, second) = (read(), read());
        std::fs::remove_file(&path).unwrap();
        assert!(first > 0 && first < second);
    }
}
