//! API token check (status.md 8).
#![forbid(unsafe_code)]

/// True if `file` (`priv/token.cfg`) has a line that equals `token` in every byte.
///
/// Takes the same time wherever the line stands and however much of it is right; only lengths of
/// lines can be learnt. `token` holds no newline.
pub fn verify(file: &[u8], token: &[u8]) -> bool {
    let mut found = 0u8;
    for line in file.split(|byte| *byte == b'\n') {
        if line.len() == token.len() {
            let differs = line
                .iter()
                .zip(token)
                .fold(0u8, |acc, (a, b)| acc | (a ^ b));
            // Keeps the compiler from leaving the loop early.
            found |= u8::from(std::hint::black_box(differs) == 0);
        }
    }
    std::hint::black_box(found) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_only() {
        let file = b"root@pam!t 1234\nuser@pve!x abc \n\n last 999";
        assert!(verify(file, b"root@pam!t 1234"));
        assert!(verify(file, b"user@pve!x abc "));
        assert!(verify(file, b" last 999"));
        assert!(!verify(file, b"last 999"));
        assert!(!verify(file, b"root@pam!t 123"));
        assert!(!verify(file, b"Root@pam!t 1234"));
        assert!(!verify(b"", b"x"));
        assert!(!verify(b"x", &[b'x'; 300]));
    }
}
