//! How one record lies on the disk: a head of fixed length, then words about it, then its body.
//!
//! | bytes | |
//! | --- | --- |
//! | 4 | magic |
//! | 1, 1, 2 | version, kind, nothing |
//! | 4, 4 | lengths of meta and body |
//! | 16 | the message |
//! | 4 | checksum of meta and body |
//! | 4 | checksum of the head |
//! | … | meta: JSON, so that it can grow and a person can read it |
//! | … | body: the payload, if it is kept |
//!
//! The head has a checksum of its own: if only the rest is damaged, it still says how far the
//! damage can reach and whom it has hit.
//!
//! Both checksums begin with the salt of the segment and the place in it. Payloads are written by
//! strangers: one may hold the bytes of a frame, and after damage the search for the next frame
//! goes through payloads. The salt is known to no caller, so a forged frame does not pass, and
//! neither does a true one that was copied from elsewhere.

use bytes::Bytes;
use crc32fast::Hasher;

use crate::message::MessageId;

/// The length of a head.
pub(super) const HEAD: usize = 40;
/// How a head begins; its first byte is in no UTF-8 text, which makes the search short.
pub(super) const MAGIC: [u8; 4] = [0xf5, b't', b'g', 0xfe];
const VERSION: u8 = 1;

/// What a frame says of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// All that is known of it, and its body.
    Kept = 1,
    Calling = 2,
    Tried = 3,
    /// All that is left of it: it was delivered, or dropped.
    Delivered = 4,
    Dead = 5,
    Replayed = 6,
    Forgotten = 7,
}

impl RecordKind {
    const ALL: [Self; 7] = [
        Self::Kept,
        Self::Calling,
        Self::Tried,
        Self::Delivered,
        Self::Dead,
        Self::Replayed,
        Self::Forgotten,
    ];
}

/// A frame that is to be written. Clones share its bytes.
#[derive(Debug, Clone)]
pub(super) struct PendingRecord {
    pub(super) kind: RecordKind,
    pub(super) id: MessageId,
    pub(super) meta: Bytes,
    pub(super) body: Bytes,
}

impl PendingRecord {
    /// A frame that says nothing but its kind.
    pub(super) fn bare(kind: RecordKind, id: MessageId) -> Self {
        Self { kind, id, meta: Bytes::new(), body: Bytes::new() }
    }

    /// Its length on the disk.
    pub(super) fn len(&self) -> u32 {
        length(HEAD + self.meta.len() + self.body.len())
    }

    /// Writes it for the place `offset` of the segment with this salt.
    pub(super) fn encode(&self, salt: u64, offset: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.kind as u8, 0, 0]);
        out.extend_from_slice(&length(self.meta.len()).to_le_bytes());
        out.extend_from_slice(&length(self.body.len()).to_le_bytes());
        out.extend_from_slice(&self.id.as_u128().to_le_bytes());
        let mut content = seeded(salt, offset);
        content.update(&self.meta);
        content.update(&self.body);
        out.extend_from_slice(&content.finalize().to_le_bytes());
        let mut head = seeded(salt, offset);
        head.update(&out[start..]);
        out.extend_from_slice(&head.finalize().to_le_bytes());
        out.extend_from_slice(&self.meta);
        out.extend_from_slice(&self.body);
    }
}

/// A head whose checksum is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// `None`: of a version or kind that we do not know.
    pub(super) kind: Option<RecordKind>,
    pub(super) id: MessageId,
    meta: u32,
    body: u32,
    content: u32,
}

impl Head {
    /// The head at the beginning of `bytes`, if there is one.
    pub(super) fn read(bytes: &[u8], salt: u64, offset: u64) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD>()?;
        if head[..4] != MAGIC {
            return None;
        }
        let mut sum = seeded(salt, offset);
        sum.update(&head[..HEAD - 4]);
        if sum.finalize() != word(head, HEAD - 4) {
            return None;
        }
        let known = |kind: &RecordKind| head[4] == VERSION && *kind as u8 == head[5];
        let mut id = [0; 16];
        id.copy_from_slice(&head[16..32]);
        Some(Self {
            kind: RecordKind::ALL.into_iter().find(known),
            id: MessageId::from_u128(u128::from_le_bytes(id)),
            meta: word(head, 8),
            body: word(head, 12),
            content: word(head, 32),
        })
    }

    /// The length of the whole frame.
    pub(super) fn len(&self) -> u64 {
        HEAD as u64 + u64::from(self.meta) + u64::from(self.body)
    }

    /// Meta and body of the whole frame, if they are what was written.
    pub(super) fn content<'a>(
        &self,
        frame: &'a [u8],
        salt: u64,
        offset: u64,
    ) -> Option<(&'a [u8], &'a [u8])> {
        let rest = frame.get(HEAD..)?;
        let mut sum = seeded(salt, offset);
        sum.update(rest);
        if rest.len() as u64 != self.len() - HEAD as u64 || sum.finalize() != self.content {
            return None;
        }
        rest.split_at_checked(self.meta as usize)
    }
}

fn seeded(salt: u64, offset: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&offset.to_le_bytes());
    hasher
}

fn word(bytes: &[u8; HEAD], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Frames are bounded far below four gigabytes by the bounds of a message.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
