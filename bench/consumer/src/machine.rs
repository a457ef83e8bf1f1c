//! What the figures were measured on.

/// Processor, cores and memory, and whether the figures mean anything.
pub fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = field(&processors, "model name").unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kibibytes = field(&memory, "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse::<f64>().ok());
    let gigabytes = kibibytes.unwrap_or_default() * 1024.0 / 1e9;
    let profile =
        if cfg!(debug_assertions) { "NOT a release build: these figures mean nothing. " } else { "" };
    format!("{profile}{cores} cores ({model}), {gigabytes:.0} GB of memory")
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.trim_start().strip_prefix(':').map(str::trim);
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nMemTotal:  12 kB\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "MemTotal"), Some("12 kB"));
        assert_eq!(field(text, "model"), None);
    }
}
