//! Versions, as compilers, packages and tools write them.

use std::fmt;

/// The numbers of a version; what follows them (`-nightly`, `+dfsg1-1~deb12u2`) does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Reads `1.96`, `1.96.0`, `1.97.0-nightly` or a Debian version, `1.96.0+dfsg1-1~deb12u2`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // An epoch ("1:2.3") orders versions among packages; it is no part of what the program calls itself.
        let text = text.split_once(':').map_or(text, |(_epoch, version)| version);
        let numbers = text.split(|c: char| !(c.is_ascii_digit() || c == '.')).next()?;
        let mut parts = numbers.split('.').map(str::parse);
        let major = parts.next()?.ok()?;
        let minor = parts.next()?.ok()?;
        let patch = parts.next().transpose().ok()?.unwrap_or(0);
        Some(Self { major, minor, patch })
    }

    /// The first number.
    pub(crate) fn major(self) -> u32 {
        self.major
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { major, minor, patch } = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap_or_else(|| panic!("{text:?} is a version"))
    }

    #[test]
    fn versions_are_read_as_their_makers_write_them() {
        let cases = [
            ("1.95", "1.95.0"),
            ("1.96.0", "1.96.0"),
            ("1.97.0-nightly", "1.97.0"),
            ("1.96.0+dfsg1-1~deb12u2", "1.96.0"),
            ("1:22.1.8-1~deb12u1", "22.1.8"),
            ("0.10.3", "0.10.3"),
        ];
        for (text, expected) in cases {
            assert_eq!(version(text).to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_version_is_none() {
        for text in [
            "",
            "(none)",
            "nightly",
            "1",
            "1.",
            ".1",
            "-1.2",
            "1.2.99999999999",
        ] {
            assert_eq!(Version::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(version("1.100.0") > version("1.96.1"));
        assert!(version("1.96.1") > version("1.96"));
        assert!(version("1.63.0+dfsg1-2") < version("1.95"));
    }
}
