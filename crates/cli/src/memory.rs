//! How much memory this process may still take.

/// Bytes that can be allocated without pushing anything out; `None` where the system does not tell.
pub(crate) fn available_bytes() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| kib_of(&text, "MemAvailable:"));
    [machine, control_group()].into_iter().flatten().min()
}

/// The memory of the machine.
pub(crate) fn total_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    kib_of(&text, "MemTotal:")
}

/// The most memory that this process has held at a time.
pub(crate) fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    kib_of(&text, "VmHWM:")
}

/// The memory that this process holds now.
pub(crate) fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    kib_of(&text, "VmRSS:")
}

/// A size as people write it: a number with kB, MB, GB or TB of 1000, or KiB, MiB, GiB or TiB of 1024, each.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let unit = unit.trim().to_ascii_lowercase();
    let scale: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "g" | "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        "t" | "tb" => 1_000_000_000_000,
        "tib" => 1 << 40,
        _ => return Err(format!("{unit:?} is no unit; write 8GB, 500MB or 4GiB")),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * scale as f64) as u64),
        _ => Err("a size is a number above 0 and a unit: 8GB, 500MB or 4GiB".into()),
    }
}

/// Bytes of each of the two buffers with which the memory is measured: beyond the largest caches, and no
/// more than an eighth of what is available, or of a bound.
pub(crate) fn measuring_bytes(bound: Option<u64>) -> usize {
    let available = available_bytes().unwrap_or(1 << 30);
    (available.min(bound.unwrap_or(u64::MAX)) / 8).clamp(16 << 20, 512 << 20) as usize
}

/// What the limit of a container leaves (cgroup v2).
fn control_group() -> Option<u64> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok() // "max" is no limit
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

/// Bytes of a line such as `MemAvailable:   12345 kB`.
fn kib_of(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let sizes = ["8GB", "1.5 gb", "512MiB", "4096", "2k", "1TiB"];
        let bytes = [8_000_000_000, 1_500_000_000, 512 << 20, 4096, 2000, 1 << 40];
        assert_eq!(sizes.map(|size| parse_bytes(size).unwrap()), bytes);
        for size in ["", "GB", "0", "-1GB", "8 apples", "1.2.3MB", "1e9"] {
            assert!(parse_bytes(size).is_err(), "{size}");
        }
    }

    #[test]
    fn the_available_memory_is_read_from_its_line() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(kib_of(text, "MemAvailable:"), Some(12_345_678 * 1024));
        assert_eq!(kib_of("MemTotal: 1 kB\n", "MemAvailable:"), None);
        assert_eq!(kib_of("MemAvailable: many\n", "MemAvailable:"), None);
    }
}
