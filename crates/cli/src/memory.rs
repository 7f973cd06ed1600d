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

/// Bytes of each of the two buffers with which the memory is measured: beyond the largest caches, and no
/// more than an eighth of what is available.
pub(crate) fn measuring_bytes() -> usize {
    let available = available_bytes().unwrap_or(1 << 30);
    (available / 8).clamp(16 << 20, 512 << 20) as usize
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
    fn the_available_memory_is_read_from_its_line() {
        let text = "MemTotal:       24000000 kB\nMemAvailable:   12345678 kB\n";
        assert_eq!(kib_of(text, "MemAvailable:"), Some(12_345_678 * 1024));
        assert_eq!(kib_of("MemTotal: 1 kB\n", "MemAvailable:"), None);
        assert_eq!(kib_of("MemAvailable: many\n", "MemAvailable:"), None);
    }
}
