//! libc's words for an errno as admins know them.
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// The text without ` (os error 11)`, which Rust adds to libc's words for an errno: admins match on
/// the plain texts (daemon.md 7).
pub fn plain_errno(text: &str) -> Cow<'_, str> {
    const MARK: &str = " (os error ";
    let mut rest = text;
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once(MARK) {
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let tail = &after[digits..];
        out.push_str(before);
        match tail.strip_prefix(')') {
            Some(tail) if digits > 0 => rest = tail,
            _ => {
                out.push_str(MARK);
                rest = after;
            }
        }
    }
    if out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_errno_is_left_out() {
        let busy = std::io::Error::from_raw_os_error(libc::EAGAIN).to_string();
        assert_eq!(plain_errno(&busy), "Resource temporarily unavailable");
        assert_eq!(plain_errno("a (os error 2): b (os error 17)!"), "a: b!");
        assert_eq!(
            plain_errno("(os error x) (os error )"),
            "(os error x) (os error )"
        );
        assert_eq!(plain_errno("plain"), "plain");
    }
}
