//! Whether this processor has what the binary is compiled for.

/// What RocksDB's checksums need, as `/proc/cpuinfo` spells it. Every x86-64 processor since 2010 has both.
#[cfg(target_arch = "x86_64")]
const NEEDED: [(&str, &str); 2] = [("sse4_2", "SSE 4.2"), ("pclmulqdq", "PCLMULQDQ")];

/// The extension that is missing; `None` where all are there or where it cannot be told.
pub(crate) fn missing() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::io::Read;
        // The first processor's entry is enough, and on a large machine the whole file takes a while.
        const ENTRY_BYTES: u64 = 8 << 10;
        let mut text = String::new();
        std::fs::File::open("/proc/cpuinfo").ok()?.take(ENTRY_BYTES).read_to_string(&mut text).ok()?;
        missing_in(&text)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

#[cfg(target_arch = "x86_64")]
fn missing_in(cpuinfo: &str) -> Option<&'static str> {
    // `is_x86_feature_detected!` is always true for what the compiler was told to use.
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    NEEDED.iter().find(|(flag, _)| !flags.split_whitespace().any(|f| f == *flag)).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn an_old_processor_is_recognised() {
        assert_eq!(
            crate::cli::processor::missing_in("processor\t: 0\nflags\t\t: fpu sse4_2 pclmulqdq\n"),
            None
        );
        assert_eq!(crate::cli::processor::missing_in("flags\t\t: fpu sse4_1 pclmulqdq\n"), Some("SSE 4.2"));
        assert_eq!(crate::cli::processor::missing_in("flags\t\t: sse4_2\n"), Some("PCLMULQDQ"));
        assert_eq!(crate::cli::processor::missing_in("Features : neon\n"), None);
    }
}
