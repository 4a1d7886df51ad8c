//! What the doctor says.

use std::io::{self, Write};

use serde::Serialize;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// It is as it should be.
    Ok,
    /// It is worth knowing.
    Note,
    /// It works, and not as it should, or not for long.
    Warning,
    /// Packets are lost by it, or pass the director by.
    Broken,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Broken => "BROKEN",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// A name for programs, such as `vip-elsewhere`.
    pub code: &'static str,
    /// What it is about: an interface, a VIP, a real server of a service.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// Why it matters; empty where all is well.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    /// The command that mends it, or what to look at, and where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    pub(super) fn new(level: Level, code: &'static str, subject: &str, found: String) -> Self {
        Self {
            level,
            code,
            subject: subject.to_owned(),
            found,
            why: "",
            mend: None,
        }
    }

    pub(super) fn because(self, why: &'static str) -> Self {
        Self { why, ..self }
    }

    pub(super) fn mend(self, mend: impl Into<String>) -> Self {
        Self {
            mend: Some(mend.into()),
            ..self
        }
    }
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The worst of it.
    pub level: Level,
    /// Each thing, in the order in which a packet meets them: host, interfaces, VIPs, real servers.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(findings: Vec<Finding>) -> Self {
        let worst = findings.iter().map(|finding| finding.level).max();
        Self {
            level: worst.unwrap_or(Level::Ok),
            findings,
        }
    }

    /// The exit status that goes with it: 0, with warnings 1, where something is broken 2.
    pub fn status(&self) -> u8 {
        match self.level {
            Level::Ok | Level::Note => 0,
            Level::Warning => 1,
            Level::Broken => 2,
        }
    }

    /// Writes it for people: what is well only where `all` is to be shown.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, all: bool, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let shown = self
            .findings
            .iter()
            .filter(|found| all || found.level > Level::Ok);
        for Finding {
            level,
            subject,
            found,
            why,
            mend,
            ..
        } in shown
        {
            writeln!(out, "{:<8} {subject}: {found}", level.word())?;
            if !why.is_empty() {
                writeln!(out, "         why: {why}")?;
            }
            if let Some(mend) = mend {
                writeln!(out, "         mend: {mend}")?;
            }
        }
        let count = |level| self.findings.iter().filter(|found| found.level == level).count();
        writeln!(
            out,
            "{} things looked at: {} broken, {} warnings, {} notes",
            self.findings.len(),
            count(Level::Broken),
            count(Level::Warning),
            count(Level::Note)
        )
    }
}
