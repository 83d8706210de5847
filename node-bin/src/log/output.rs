//! Where lines go: the standard streams and files, one of which may be rotated.
//!
//! Depends on `config` for what is wanted. Invariant: a failing output never stops the member; the lines are lost.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::InitError;
use crate::config::{LogConfig, LogOutput, LogRotation};

/// All outputs of a log.
pub(super) struct Outputs(Vec<Output>);

enum Output {
    Stderr,
    Stdout,
    File(File),
    Rotated(Mutex<Rotated>),
}

impl Outputs {
    pub(super) fn open(config: &LogConfig) -> Result<Outputs, InitError> {
        let open = |output: &LogOutput| match (output, config.rotation) {
            (LogOutput::Stderr, _) => Ok(Output::Stderr),
            (LogOutput::Stdout, _) => Ok(Output::Stdout),
            (LogOutput::File(path), rotation) => {
                let opened = match rotation {
                    Some(rotation) => {
                        Rotated::open(path, rotation).map(|file| Output::Rotated(Mutex::new(file)))
                    }
                    None => append(path).map(Output::File),
                };
                opened.map_err(|source| InitError::Open {
                    path: path.clone(),
                    source,
                })
            }
        };
        config
            .outputs
            .iter()
            .map(open)
            .collect::<Result<_, _>>()
            .map(Outputs)
    }

    pub(super) fn write(&self, line: &[u8]) {
        for output in &self.0 {
            // There is nowhere to report a log that cannot be written.
            let _ = match output {
                Output::Stderr => io::stderr().lock().write_all(line),
                Output::Stdout => io::stdout().lock().write_all(line),
                Output::File(file) => (&*file).write_all(line),
                Output::Rotated(file) => file.lock().write(line),
            };
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// A file that is put aside when it is full, under its name with the time added before the extension.
struct Rotated {
    path: PathBuf,
    rotation: LogRotation,
    file: File,
    size: u64,
}

impl Rotated {
    fn open(path: &Path, rotation: LogRotation) -> io::Result<Rotated> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        Ok(Rotated {
            path: path.into(),
            rotation,
            file,
            size,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.rotation.size_max {
            // If the old file cannot be put aside, it goes on growing: better than no log.
            let _ = self.rotate();
        }
        self.size += line.len() as u64;
        self.file.write_all(line)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let (stem, extension) = self.name_parts();
        let time = Timestamp::now()
            .strftime("%Y-%m-%dT%H-%M-%S.%6f")
            .to_string();
        fs::rename(
            &self.path,
            self.path
                .with_file_name(format!("{stem}-{time}{extension}")),
        )?;
        self.file = append(&self.path)?;
        self.size = 0;
        self.remove_old()
    }

    fn name_parts(&self) -> (String, String) {
        let part =
            |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
        let extension = part(self.path.extension()).map(|extension| format!(".{extension}"));
        (
            part(self.path.file_stem()).unwrap_or_default(),
            extension.unwrap_or_default(),
        )
    }

    fn remove_old(&self) -> io::Result<()> {
        let LogRotation {
            days_max,
            files_max,
            ..
        } = self.rotation;
        if days_max == 0 && files_max == 0 {
            return Ok(());
        }
        let (stem, extension) = self.name_parts();
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut old: Vec<PathBuf> = fs::read_dir(directory)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let name = path
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default();
                let time = name
                    .strip_prefix(&format!("{stem}-"))
                    .and_then(|rest| rest.strip_suffix(&extension));
                time.is_some_and(|time| {
                    time.len() == 26 && time.starts_with(|c: char| c.is_ascii_digit())
                })
            })
            .collect();
        // Their names end in the time they were put aside.
        old.sort();
        let keep = usize::try_from(files_max).unwrap_or(usize::MAX);
        let surplus = if files_max == 0 {
            0
        } else {
            old.len().saturating_sub(keep)
        };
        let age_max = Duration::from_secs(days_max.saturating_mul(24 * 3600));
        for (at, path) in old.iter().enumerate() {
            let age = || {
                SystemTime::now()
                    .duration_since(fs::metadata(path).ok()?.modified().ok()?)
                    .ok()
            };
            if at < surplus || (days_max > 0 && age().is_some_and(|age| age > age_max)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_the_oldest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.log");
        fs::write(dir.path().join("etcd-notes.log"), "not ours").unwrap();
        let rotation = LogRotation {
            size_max: 10,
            days_max: 0,
            files_max: 2,
        };
        let mut file = Rotated::open(&path, rotation).unwrap();
        for line in [
            "1234567\n",
            "2234567\n",
            "3234567\n",
            "4234567\n",
            "5234567\n",
        ] {
            file.write(line.as_bytes()).unwrap();
        }
        let mut contents: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        contents.sort();
        assert_eq!(
            contents,
            ["3234567\n", "4234567\n", "5234567\n", "not ours"]
        );
        assert_eq!(fs::read_to_string(path).unwrap(), "5234567\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let outputs = vec![LogOutput::File("/nonexistent/etcd.log".into())];
        let error = Outputs::open(&LogConfig {
            outputs,
            ..LogConfig::default()
        })
        .err()
        .unwrap();
        assert!(
            error.to_string().contains("/nonexistent/etcd.log"),
            "{error}"
        );
    }
}
