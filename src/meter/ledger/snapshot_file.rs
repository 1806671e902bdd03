//! The snapshot file, `hot`: what has happened since the store was last written.
//!
//! Two slots are written in turn, so that a torn write leaves the snapshot before it. The file is not
//! synced: a killed process loses nothing of it, and a power failure costs at most the five seconds
//! since the store was synced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::{Buf, BufMut};

use super::reservations::{Bucket, LedgerSnapshot};
use super::series_name::SeriesName;

const SLOT: usize = 192 * 1024;
const MAGIC: u32 = u32::from_le_bytes(*b"tgl1");
/// Magic, checksum, length, sequence.
const HEAD: usize = 4 + 4 + 8 + 8;

#[derive(Debug)]
pub(super) struct SnapshotFile {
    file: File,
    sequence: u64,
    buffer: Vec<u8>,
}

impl SnapshotFile {
    /// Opens it, and reads what an earlier process has left.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<LedgerSnapshot>)> {
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        // All its reserved from the start: a full disk is noticed now rather than in a write.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 * SLOT as u64)
            .or_else(|_| file.set_len(2 * SLOT as u64))?;
        let mut bytes = vec![0; SLOT];
        let mut newest = None;
        for slot in 0..2_u64 {
            file.read_exact_at(&mut bytes, slot * SLOT as u64)?;
            if let Some((sequence, snapshot)) = decode(&bytes)
                && newest.as_ref().is_none_or(|(newest, _)| sequence > *newest)
            {
                newest = Some((sequence, snapshot));
            }
        }
        let sequence = newest.as_ref().map_or(0, |(sequence, _)| *sequence);
        Ok((Self { file, sequence, buffer: Vec::new() }, newest.map(|(_, snapshot)| snapshot)))
    }

    pub(super) fn write(&mut self, snapshot: &LedgerSnapshot) -> io::Result<()> {
        self.sequence += 1;
        encode(snapshot, self.sequence, &mut self.buffer);
        if self.buffer.len() > SLOT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "more than a slot holds"));
        }
        self.file.write_all_at(&self.buffer, self.sequence % 2 * SLOT as u64)
    }
}

fn encode(snapshot: &LedgerSnapshot, sequence: u64, to: &mut Vec<u8>) {
    to.clear();
    to.put_bytes(0, HEAD);
    to.put_u64_le(snapshot.generation);
    to.put_i64_le(snapshot.second);
    to.put_u64_le(snapshot.names.len() as u64);
    for (id, name) in &snapshot.names {
        to.put_u16_le(*id);
        for text in [&*name.instance, &*name.scope()] {
            to.put_u64_le(text.len() as u64);
            to.put_slice(text.as_bytes());
        }
    }
    to.put_u64_le(snapshot.buckets.len() as u64);
    for ((second, id), bucket) in &snapshot.buckets {
        to.put_i64_le(*second);
        to.put_u16_le(*id);
        to.put_u64_le(bucket.billable);
        to.put_u64_le(bucket.uncertain);
    }
    to.put_u64_le(snapshot.reserved.len() as u64);
    for (id, reserved) in &snapshot.reserved {
        to.put_u16_le(*id);
        to.put_u64_le(*reserved);
    }
    let length = to.len() - HEAD;
    let mut checked = crc32fast::Hasher::new();
    checked.update(&sequence.to_le_bytes());
    checked.update(&to[HEAD..]);
    let mut head = &mut to[..HEAD];
    head.put_u32_le(MAGIC);
    head.put_u32_le(checked.finalize());
    head.put_u64_le(length as u64);
    head.put_u64_le(sequence);
}

/// `None`: nothing was written here, or not wholly.
fn decode(mut bytes: &[u8]) -> Option<(u64, LedgerSnapshot)> {
    if bytes.try_get_u32_le().ok()? != MAGIC {
        return None;
    }
    let (sum, length) = (bytes.try_get_u32_le().ok()?, bytes.try_get_u64_le().ok()?);
    let sequence = bytes.try_get_u64_le().ok()?;
    let mut body = bytes.get(..usize::try_from(length).ok()?)?;
    let mut checked = crc32fast::Hasher::new();
    checked.update(&sequence.to_le_bytes());
    checked.update(body);
    if checked.finalize() != sum {
        return None;
    }
    let body = &mut body;
    let mut snapshot = LedgerSnapshot {
        generation: body.try_get_u64_le().ok()?,
        second: body.try_get_i64_le().ok()?,
        ..LedgerSnapshot::default()
    };
    for _ in 0..body.try_get_u64_le().ok()? {
        let id = body.try_get_u16_le().ok()?;
        let name = SeriesName::of_scope(&text(body)?, &text(body)?);
        snapshot.names.push((id, name));
    }
    for _ in 0..body.try_get_u64_le().ok()? {
        let key = (body.try_get_i64_le().ok()?, body.try_get_u16_le().ok()?);
        let (billable, uncertain) = (body.try_get_u64_le().ok()?, body.try_get_u64_le().ok()?);
        snapshot.buckets.insert(key, Bucket { billable, uncertain });
    }
    for _ in 0..body.try_get_u64_le().ok()? {
        snapshot.reserved.insert(body.try_get_u16_le().ok()?, body.try_get_u64_le().ok()?);
    }
    Some((sequence, snapshot))
}

fn text(body: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(body.try_get_u64_le().ok()?).ok()?;
    let text = body.get(..length)?;
    body.advance(length);
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(generation: u64) -> LedgerSnapshot {
        let caller = if generation == 2 { "orders" } else { "" };
        let name = SeriesName {
            instance: "post-cn-1".into(),
            topic: "TopicA".into(),
            caller: caller.into(),
        };
        let bucket = Bucket { billable: 3, uncertain: 1 };
        LedgerSnapshot {
            generation,
            second: 1_700_000_000,
            names: vec![(0, name)],
            buckets: [((1_700_000_000, 0), bucket)].into(),
            reserved: [(0, 7)].into(),
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_torn_write_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hot");
        let (mut file, found) = SnapshotFile::open(&path).unwrap();
        assert_eq!(found, None);
        for generation in 1..=3 {
            file.write(&snapshot(generation)).unwrap();
            assert_eq!(SnapshotFile::open(&path).unwrap().1, Some(snapshot(generation)));
        }
        // The third is in the second slot.
        let (_, before) = (snapshot(3), snapshot(2));
        for at in 0..HEAD + 60 {
            let offset = (SLOT + at) as u64;
            let mut byte = [0];
            file.file.read_exact_at(&mut byte, offset).unwrap();
            file.file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
            assert_eq!(SnapshotFile::open(&path).unwrap().1, Some(before.clone()), "byte {at}");
            file.file.write_all_at(&byte, offset).unwrap();
        }
        assert_eq!(SnapshotFile::open(&path).unwrap().1, Some(snapshot(3)));
    }

    /// A snapshot that does not go to the store at once fits into the file, however many series begin together.
    #[test]
    fn what_is_not_large_fits() {
        for series in (0..4_000_u16).step_by(50) {
            let name = |id: u16| SeriesName {
                instance: "post-cn-0pp12gl0000".into(),
                topic: format!("{id:064}").into(),
                caller: format!("{id:064}").into(),
            };
            let bucket = Bucket { billable: 3, uncertain: 1 };
            let many = LedgerSnapshot {
                names: (0..series).map(|id| (id, name(id))).collect(),
                buckets: (0..series).map(|id| ((1_700_000_000, id), bucket)).collect(),
                reserved: (0..series).map(|id| (id, 4)).collect(),
                ..snapshot(1)
            };
            let mut bytes = Vec::new();
            encode(&many, 1, &mut bytes);
            assert!(bytes.len() <= SLOT || many.is_large(), "{series}: {}", bytes.len());
            assert!(series < 1_000 || many.is_large());
            assert!(series > 300 || !many.is_large());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_image_or_none(bytes in proptest::collection::vec(0_u8.., 0..300)) {
            decode(&bytes);
        }
    }
}
