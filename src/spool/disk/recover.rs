//! Replays all files from the beginning.

use std::collections::BTreeMap;
use std::io;

use jiff::Timestamp;

use super::damaged::Range;
use super::files::Disk;
use super::scan::{Scanned, ScannedFile, scan};
use super::segments::{Segments, parse};
use crate::message::MessageId;
use crate::spool::entry::Location;
use crate::spool::frame::{Head, RecordKind};
use crate::spool::index::Index;
use crate::spool::meta::{self, Decoded};
use crate::spool::record::{Change, DAMAGED_CODE, Death, Reason, Receipt};

/// What was found.
#[derive(Debug)]
pub(super) struct RecoveredLog {
    pub(super) index: Index,
    pub(super) segments: Segments,
    /// The first number that no segment has.
    pub(super) next: u32,
    /// Damage, by file.
    pub(super) damage: Vec<(String, Range)>,
    /// Changes whose body is corrupt but whose header is intact; rewritten on open.
    pub(super) repairs: BTreeMap<MessageId, Change>,
}

/// Reads all segments, oldest first.
pub(super) fn recover(disk: &dyn Disk) -> io::Result<RecoveredLog> {
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
        tracing::warn!(%error, "the spool's files cannot be synced: a power failure may lose stored messages; check the disk");
    }
    let mut recovered = RecoveredLog {
        index: Index::of_segments(),
        segments: Segments::default(),
        next: 0,
        damage: Vec::new(),
        repairs: BTreeMap::new(),
    };
    for (segment, salt, name, len) in files {
        recovered.next = segment.saturating_add(1);
        recovered.segments.insert(segment, salt, len);
        let file = ScannedFile { disk, name: &name, salt, len };
        scan(file, &mut |found| match found {
            Scanned::Frame { kind, head, offset, meta } => {
                recovered.frame(segment, kind, head, offset, meta)
            }
            Scanned::Damage { head, offset, len } => {
                recovered.index.damaged += 1;
                recovered.damage.push((name.clone(), Range { offset, len }));
                if let Some(head) = head {
                    recovered.repair(head);
                }
                true
            }
        })?;
    }
    Ok(recovered)
}

impl RecoveredLog {
    fn frame(
        &mut self,
        segment: u32,
        kind: RecordKind,
        head: Head,
        offset: u64,
        meta: &[u8],
    ) -> bool {
        let (Ok(offset), Ok(len)) = (u32::try_from(offset), u32::try_from(head.len())) else {
            return false;
        };
        let location = Location { segment, offset, len };
        let id = head.id;
        match meta::read(kind, meta, location, &mut self.index.destinations) {
            None => return false,
            Some(Decoded::Full(entry)) => self.index.insert(id, entry),
            Some(Decoded::Change(change)) => {
                self.index.replay(id, &change, |_| len);
            }
        }
        self.repairs.remove(&id);
        true
    }

    /// A frame has lost its words, but its head says what it was about. Its message must not be
    /// sent once more because of that, and its claim must stand.
    fn repair(&mut self, head: Head) {
        let id = head.id;
        let Some(entry) = self.index.get(id) else { return };
        let (attempts, at) = (entry.attempts, Timestamp::now());
        let change = match head.kind {
            Some(RecordKind::Delivered) => {
                let (msg_id, request_id) = (DAMAGED_CODE.into(), DAMAGED_CODE.into());
                Change::Delivered(attempts, Receipt { msg_id, request_id, at, accepted: true })
            }
            Some(RecordKind::Dead) => {
                let (reason, code) = (Reason::Unknown, Some(DAMAGED_CODE.into()));
                Change::Dead(attempts, Death { reason, code, request_id: None, at, accepted: true })
            }
            _ => return,
        };
        if self.index.change(id, &change, |entry| meta::change(id, &change, entry).len()) {
            self.repairs.insert(id, change);
        }
    }
}
