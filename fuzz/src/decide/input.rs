//! What an input is: 8 octets of settings, then frames, each behind two octets: its length in the lower 11 bits
//! (big-endian), and in the upper 5 how many times 4 seconds pass before it comes.

/// Octets of the settings.
pub const SETTINGS: usize = 8;

const LENGTH: u16 = 0x7ff;

/// An input, taken apart.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What the tables are like.
    pub settings: [u8; SETTINGS],
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// `None` where there are not even settings.
    pub fn read(input: &'a [u8]) -> Option<Self> {
        let (settings, rest) = input.split_first_chunk()?;
        Some(Self {
            settings: *settings,
            rest,
        })
    }

    /// The frames, and the seconds that pass before each. The last one may be shorter than it should.
    pub fn frames(self) -> impl Iterator<Item = (u32, &'a [u8])> {
        let mut rest = self.rest;
        std::iter::from_fn(move || {
            let (head, behind) = rest.split_first_chunk()?;
            let head = u16::from_be_bytes(*head);
            let length = usize::from(head & LENGTH).min(behind.len());
            let (frame, others) = behind.split_at(length);
            rest = others;
            Some((u32::from(head >> 11) * 4, frame))
        })
    }
}

/// The input of these settings and frames.
///
/// # Panics
///
/// When a frame is too long.
pub fn write(settings: [u8; SETTINGS], frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut input = settings.to_vec();
    for (seconds, frame) in frames {
        let length = u16::try_from(frame.len()).ok().filter(|length| *length <= LENGTH);
        let quarters = u16::try_from(seconds / 4).expect("a short time");
        let head = length.expect("a frame of at most 2,047 bytes") | quarters << 11;
        input.extend(head.to_be_bytes());
        input.extend(frame);
    }
    input
}
