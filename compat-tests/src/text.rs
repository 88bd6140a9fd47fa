//! Taking out of the answers what varies.

/// Replaces the number behind every `key` by `N`.
pub fn without_number(text: &str, key: &str) -> String {
    let mut parts = text.split(key);
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        out += key;
        out += "N";
        out += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out
}

/// Sorts what stands between `before` and `after` and is separated by `separator`; a text without
/// these two stays as it is.
pub fn sort_between(text: &str, before: &str, after: &str, separator: &str) -> String {
    let start = text.find(before).map(|at| at + before.len());
    let end = start.and_then(|start| Some(start + text[start..].find(after)?));
    let (Some(start), Some(end)) = (start, end) else {
        return text.into();
    };
    let mut parts: Vec<&str> = text[start..end].split(separator).collect();
    parts.sort_unstable();
    format!(
        "{}{}{}",
        &text[..start],
        parts.join(separator),
        &text[end..]
    )
}

/// Takes out times, process ids and the order of hash tables.
pub fn canonical(file: &str, bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match file {
        "version" => {
            let text = without_number(&text, "\"starttime\": ");
            sort_between(&text, "\"node1\": {\n", "}\n}\n}\n", ",\n")
        }
        "vmlist" => sort_between(&text, "\"ids\": {\n", "}\n\n}\n", ",\n"),
        "clusterlog" => without_number(&without_number(&text, "\"time\": "), "\"pid\": "),
        _ => text.into_owned(),
    }
}
