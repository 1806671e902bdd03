//! What the files say, told again from the beginning.

use std::collections::BTreeMap;
use std::io;

use super::damaged::Range;
use super::disk::{DAMAGED, Disk};
use super::frame::{Head, Kind};
use super::index::{Index, Segment, Spot};
use super::meta::{self, Said};
use super::record::{Change, Death, Reason, Receipt};
use super::scan::{File, Found, scan};
use crate::message::MessageId;
use jiff::Timestamp;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) index: Index,
    /// The first number that no segment has.
    pub(super) next: u32,
    /// Damage, by file.
    pub(super) damage: Vec<(String, Range)>,
    /// Notes whose words are lost, but not what they were about: to be written anew.
    pub(super) amends: BTreeMap<MessageId, Change>,
}

/// The name of a segment. Its salt is in the name, so that no damaged byte can spoil it.
pub(super) fn name(segment: u32, salt: u64) -> String {
    format!("{segment:08x}-{salt:016x}.log")
}

fn parse(name: &str) -> Option<(u32, u64)> {
    let (segment, salt) = name.strip_suffix(".log")?.split_once('-')?;
    let found = (u32::from_str_radix(segment, 16).ok()?, u64::from_str_radix(salt, 16).ok()?);
    (self::name(found.0, found.1) == name).then_some(found)
}

/// Reads all segments, oldest first.
pub(super) fn recover(disk: &dyn Disk) -> io::Result<Recovered> {
    let mut files: Vec<_> = disk
        .list("")?
        .into_iter()
        .filter_map(|(name, len)| parse(&name).map(|(segment, salt)| (segment, salt, name, len)))
        .collect();
    files.sort();
    // A process that was killed may have left what only the kernel has: what is read, and acted on,
    // must not be gone after a power failure. A disk that does not sync is noticed in use.
    let synced = files.iter().try_for_each(|(_, _, name, _)| disk.sync(name));
    if let Err(error) = synced.and_then(|()| disk.sync_folder()) {
        tracing::warn!(%error, "what was found in the spool may not survive a power failure");
    }
    let mut recovered = Recovered::default();
    for (segment, salt, name, len) in files {
        recovered.next = segment.saturating_add(1);
        let about = Segment { salt, len, ..Segment::default() };
        recovered.index.segments.insert(segment, about);
        let file = File { disk, name: &name, salt, len };
        scan(file, &mut |found| match found {
            Found::Frame { kind, head, offset, meta } => {
                recovered.frame(segment, kind, head, offset, meta)
            }
            Found::Damage { head, offset, len } => {
                recovered.index.damaged += 1;
                recovered.damage.push((name.clone(), Range { offset, len }));
                if let Some(head) = head {
                    recovered.amend(head);
                }
                true
            }
        })?;
    }
    Ok(recovered)
}

impl Recovered {
    fn frame(&mut self, segment: u32, kind: Kind, head: Head, offset: u64, meta: &[u8]) -> bool {
        let (Ok(offset), Ok(len)) = (u32::try_from(offset), u32::try_from(head.len())) else {
            return false;
        };
        let spot = Spot { segment, offset, len };
        let id = head.id;
        match meta::read(kind, meta, spot, &mut self.index.places) {
            None => return false,
            Some(Said::Whole(entry)) => self.index.insert(id, entry),
            Some(Said::Change(change)) => {
                self.index.retell(id, &change, |_| len);
            }
        }
        self.amends.remove(&id);
        true
    }

    /// A frame has lost its words, but its head says what it was about. Its message must not be
    /// sent once more because of that, and its claim must stand.
    fn amend(&mut self, head: Head) {
        let id = head.id;
        let Some(entry) = self.index.get(id) else { return };
        let (attempts, at) = (entry.attempts, Timestamp::now());
        let change = match head.kind {
            Some(Kind::Delivered) => {
                let (msg_id, request_id) = (DAMAGED.into(), DAMAGED.into());
                Change::Delivered(attempts, Receipt { msg_id, request_id, at, accepted: true })
            }
            Some(Kind::Dead) => {
                let (reason, code) = (Reason::Unknown, Some(DAMAGED.into()));
                Change::Dead(attempts, Death { reason, code, request_id: None, at, accepted: true })
            }
            _ => return,
        };
        if self.index.change(id, &change, |entry| meta::change(id, &change, entry).len()) {
            self.amends.insert(id, change);
        }
    }
}
