//! A disk that can be filled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A file system of its own size, where the machine lets us mount one.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, and a line that says so: nothing can be mounted here.
    pub(crate) fn mount(dir: &Path, mib: u64) -> Option<Self> {
        Self::mount_as("tmpfs", &format!("size={mib}m,mode=0700"), dir)
    }

    /// One without bounds, whose files cannot be written past the page cache.
    pub(crate) fn mount_without_direct_writes(dir: &Path) -> Option<Self> {
        Self::mount_as("ramfs", "mode=0700", dir)
    }

    fn mount_as(kind: &str, options: &str, dir: &Path) -> Option<Self> {
        fs::create_dir_all(dir).expect("writable");
        let out = Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(dir).output();
        match out {
            Ok(out) if out.status.success() => Some(Self(dir.to_owned())),
            _ => {
                #[expect(clippy::print_stderr, reason = "why nothing was tested")]
                {
                    eprintln!("skipped: a small file system cannot be mounted here, which takes root");
                }
                None
            }
        }
    }

    /// Leaves so many bytes free, whatever a node writes meanwhile.
    pub(crate) fn fill(&self, leave: u64) -> PathBuf {
        let path = self.0.join("filler");
        let file = fs::File::create(&path).expect("writable");
        let mut filled = 0;
        loop {
            let stat = rustix::fs::statvfs(&self.0).expect("mounted");
            let more = (stat.f_bavail * stat.f_frsize).saturating_sub(leave);
            if more == 0 {
                return path;
            }
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), filled, more) {
                Ok(()) => filled += more,
                // The node was quicker: what it left is less.
                Err(rustix::io::Errno::NOSPC) => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }
}

/// Makes a filler so much smaller.
pub(crate) fn give_back(filler: &Path, bytes: u64) {
    let file = fs::OpenOptions::new().write(true).open(filler).expect("it is there");
    let size = file.metadata().expect("it is there").len();
    file.set_len(size.saturating_sub(bytes)).expect("less is always possible");
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node may still be on its way out.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
