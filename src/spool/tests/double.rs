//! A disk in memory that fails as told, and forgets at a crash what was not synced.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::super::disk::{Disk, Tail};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Double {
    state: Arc<Mutex<State>>,
    released: Arc<Condvar>,
    mount: u64,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<String, File>,
    /// The names that are durable.
    named: BTreeMap<String, u64>,
    /// Files that were removed, but not durably.
    ghosts: BTreeMap<String, File>,
    next: u64,
    pub(super) syncs: u64,
    /// So many more operations that change something succeed; then one fails.
    pub(crate) fail_in: Option<u64>,
    /// Syncs wait until this is over.
    pub(crate) held: bool,
    /// Those that do.
    waiting: usize,
    /// Every operation that changes something fails.
    pub(crate) broken: bool,
    /// The most bytes that there is room for.
    pub(super) room: Option<usize>,
    /// Who writes: whoever did before is dead, and so are its threads.
    mount: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    number: u64,
    pub(crate) bytes: Vec<u8>,
    /// As it is after a crash.
    durable: Vec<u8>,
}

impl State {
    fn may_change(&mut self, mount: u64) -> io::Result<()> {
        if mount != self.mount {
            return Err(io::Error::from_raw_os_error(19));
        }
        let now = self.fail_in == Some(0);
        self.fail_in = match self.fail_in {
            Some(n) if n > 0 => Some(n - 1),
            _ => None,
        };
        if now || self.broken { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn used(&self) -> usize {
        self.files.values().map(|file| file.bytes.len()).sum()
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Double {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The same disk for the next process.
    pub(crate) fn mount(&self) -> Self {
        let mut state = self.state();
        state.mount += 1;
        Self { mount: state.mount, ..self.clone() }
    }

    /// Lets syncs go on.
    pub(crate) fn release(&self) {
        self.state().held = false;
        self.released.notify_all();
    }

    /// Works again.
    pub(crate) fn mend(&self) {
        let mut state = self.state();
        (state.fail_in, state.broken, state.room) = (None, false, None);
        drop(state);
        self.release();
    }

    /// Whether a sync waits.
    pub(super) fn waits(&self) -> bool {
        let state = self.state();
        state.held && state.waiting > 0
    }

    /// There is room for so many more bytes.
    pub(crate) fn fill(&self, more: usize) {
        let mut state = self.state();
        state.room = Some(state.used() + more);
    }

    /// Everything that is on it now is durable.
    pub(super) fn sync_all(&self) {
        self.mount().sync_folder().unwrap();
        for file in self.state().files.values_mut() {
            file.durable = file.bytes.clone();
        }
    }

    /// What was not synced is lost, or not, sector by sector.
    pub(crate) fn crash(&self, random: &mut fastrand::Rng) {
        let mut state = self.state();
        state.mount += 1;
        let State { files, named, ghosts, .. } = &mut *state;
        // Removals and creations that were not synced have happened or not, in any order.
        files.retain(|name, file| named.get(name) == Some(&file.number) || random.bool());
        for (name, ghost) in std::mem::take(ghosts) {
            if random.bool() {
                files.entry(name).or_insert(ghost);
            }
        }
        *named = files.iter().map(|(name, file)| (name.clone(), file.number)).collect();
        for file in files.values_mut() {
            let mut after = file.durable.clone();
            if random.bool() {
                // The length was written, some of the sectors perhaps not.
                let longer = file.bytes.len().max(after.len());
                let len = if random.bool() { longer } else { random.usize(after.len()..=longer) };
                after.resize(len, 0);
                for start in (0..len).step_by(SECTOR) {
                    let end = (start + SECTOR).min(len).min(file.bytes.len());
                    if start < end && random.bool() {
                        after[start..end].copy_from_slice(&file.bytes[start..end]);
                    }
                }
            }
            file.bytes.clone_from(&after);
            file.durable = after;
        }
    }
}

impl Disk for Double {
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let state = self.state();
        let names = state.files.iter().map(|(name, file)| (name.as_str(), file.bytes.len() as u64));
        Ok(names
            .filter_map(|(name, len)| match (name.split_once('/'), folder) {
                (None, "") => Some((name.to_owned(), len)),
                (Some((within, name)), folder) if within == folder => Some((name.to_owned(), len)),
                _ => None,
            })
            .collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Tail>> {
        let mut state = self.state();
        state.may_change(self.mount)?;
        if state.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.next += 1;
        let number = state.next;
        state.files.insert(name.to_owned(), File { number, ..File::default() });
        Ok(Box::new(End { disk: self.clone(), name: name.to_owned(), number }))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        let bytes = &state.file(name)?.bytes;
        let start = usize::try_from(offset).unwrap();
        let found = bytes.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.may_change(self.mount)?;
        let file = state.file(name)?;
        file.durable = file.bytes.clone();
        Ok(())
    }

    fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.may_change(self.mount)?;
        let start = usize::try_from(offset).unwrap();
        let file = state.file(name)?;
        file.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        file.durable = file.bytes.clone();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.may_change(self.mount)?;
        let file = state.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        if state.named.get(name) == Some(&file.number) {
            state.ghosts.insert(name.to_owned(), file);
        }
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        state.may_change(self.mount)?;
        state.ghosts.clear();
        state.named = state.files.iter().map(|(name, f)| (name.clone(), f.number)).collect();
        Ok(())
    }
}

#[derive(Debug)]
struct End {
    disk: Double,
    name: String,
    number: u64,
}

impl End {
    fn change(&self, change: impl FnOnce(&mut File)) -> io::Result<()> {
        let mut state = self.disk.state();
        state.may_change(self.disk.mount)?;
        if let Ok(file) = state.file(&self.name)
            && file.number == self.number
        {
            change(file);
        }
        Ok(())
    }
}

impl Tail for End {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = {
            let state = self.disk.state();
            state.room.map_or(usize::MAX, |room| room.saturating_sub(state.used()))
        };
        let taken = bytes.len().min(room);
        // Half of it arrives, or all, and nobody is told.
        let unseen = {
            let state = self.disk.state();
            if state.mount != self.disk.mount {
                // Whoever is dead writes nothing.
                0
            } else if state.broken {
                taken
            } else {
                taken / 2 * usize::from(state.fail_in == Some(0))
            }
        };
        if let Ok(file) = self.disk.state().file(&self.name) {
            file.bytes.extend_from_slice(&bytes[..unseen]);
        }
        self.change(|file| file.bytes.extend_from_slice(&bytes[..taken]))?;
        if taken < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.waiting += 1;
        let mut state = self.disk.released.wait_while(state, |state| state.held).unwrap();
        state.waiting -= 1;
        state.syncs += 1;
        drop(state);
        self.change(|file| file.durable = file.bytes.clone())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.change(|file| {
            file.bytes.truncate(usize::try_from(len).unwrap());
            file.durable = file.bytes.clone();
        })
    }
}
