//! What the spool asks of a disk, and the real one. Everything here blocks.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::spool::OpenError;

/// Where damaged bytes are set aside.
pub(in crate::spool) const DAMAGED: &str = "damaged";
/// The process that locks it has the folder. It is there wherever there was a spool.
pub(in crate::spool) const LOCK: &str = "lock";

/// A folder of files that are appended to. A name may have [`DAMAGED`] before it.
pub(in crate::spool) trait Disk: Debug + Send + Sync {
    /// Names and lengths of the files in the folder, or in one of its folders.
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>>;
    /// A new file; durable after [`Disk::sync_folder`].
    fn create(&self, name: &str) -> io::Result<Box<dyn Tail>>;
    /// Fills the buffer from a place in a file.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Makes durable what a file has, also what an earlier process wrote.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Puts bytes over others, durably.
    fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file; durable after [`Disk::sync_folder`].
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes it durable which files there are.
    fn sync_folder(&self) -> io::Result<()>;
}

/// A file at its end.
pub(in crate::spool) trait Tail: Debug + Send {
    /// Writes all of it, or fails with any part of it written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes durable what was appended.
    fn sync_data(&mut self) -> io::Result<()>;
    /// Cuts the file to a length, durably.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// A folder of the file system.
#[derive(Debug)]
pub(in crate::spool) struct LockedFolder {
    path: PathBuf,
    /// Held as long as we live; the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

impl LockedFolder {
    /// Makes the folder if need be, and takes it.
    pub(in crate::spool) fn take(path: &Path) -> Result<Self, OpenError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        let damaged = path.join(DAMAGED);
        // A new folder is durable when the one it is in is synced.
        let new: Vec<_> = damaged.ancestors().take_while(|folder| !folder.exists()).collect();
        DirBuilder::new().recursive(true).mode(0o700).create(&damaged).map_err(failed(&damaged))?;
        for folder in new.iter().filter_map(|folder| folder.parent()) {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
        }
        let file = path.join(LOCK);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let lock = options.open(&file).map_err(failed(&file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::Taken(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(failed(&file)(error)),
        }
    }
}

impl Disk for LockedFolder {
    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.path.join(folder))? {
            let entry = entry?;
            let about = entry.metadata()?;
            if let (true, Ok(name)) = (about.is_file(), entry.file_name().into_string()) {
                files.push((name, about.len()));
            }
        }
        Ok(files)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Tail>> {
        let mut options = OpenOptions::new();
        options.create_new(true).append(true).mode(0o600);
        Ok(Box::new(options.open(self.path.join(name))?))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        File::open(self.path.join(name))?.read_exact_at(buffer, offset)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        File::open(self.path.join(name))?.sync_all()
    }

    fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path.join(name))?;
        file.write_all_at(bytes, offset)?;
        file.sync_data()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Tail for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.sync_all()
    }
}
