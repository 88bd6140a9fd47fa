//! Python literals, as some of the golden transcripts contain them.

/// The bytes of the `str`, `bytes` literal at the start of `text`, and what follows it.
pub fn literal(text: &str) -> (Vec<u8>, &str) {
    let body = text.strip_prefix('b').unwrap_or(text);
    let quote = body
        .chars()
        .next()
        .expect("a literal starts with its quote");
    let mut out = Vec::new();
    let mut chars = body.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return (out, &body[at + 1..]);
        }
        if c != '\\' {
            out.extend(c.to_string().bytes());
            continue;
        }
        let (at, escaped) = chars.next().expect("an escaped character");
        match escaped {
            'n' => out.push(b'\n'),
            't' => out.push(b'\t'),
            'r' => out.push(b'\r'),
            'x' => {
                let hex = &body[at + 1..at + 3];
                let code = u8::from_str_radix(hex, 16).expect("two hex digits");
                if text.starts_with('b') {
                    out.push(code);
                } else {
                    out.extend(char::from(code).to_string().bytes());
                }
                chars.next();
                chars.next();
            }
            other => out.extend(other.to_string().bytes()),
        }
    }
    panic!("the literal has no end: {text}");
}

/// The literals of a Python list at the start of `text`.
pub fn list(text: &str) -> (Vec<Vec<u8>>, &str) {
    let mut rest = text.strip_prefix('[').expect("a list");
    let mut out = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(end) = rest.strip_prefix(']') {
            return (out, end);
        }
        let (value, next) = literal(rest);
        out.push(value);
        rest = next;
    }
}
