//! Real Java with log4j2 from Maven Central, fetched once into the target directory.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const LOG4J: &str = "2.24.3";

/// The directory with log4j2's jars.
///
/// # Errors
/// Maven isn't installed, or Maven Central can't be reached.
pub fn log4j() -> Result<PathBuf> {
    let own = env::current_exe().context("finding the test binary")?;
    let target = own.ancestors().find(|directory| directory.join(".rustc_info.json").exists());
    let cache = target.map_or_else(env::temp_dir, Path::to_owned).join("sidestep-tests");
    fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let jars = cache.join(format!("log4j-{LOG4J}"));
    // Tests run at once; one of them fetches.
    let lock = fs::File::create(cache.join("log4j.lock"))?;
    lock.lock().context("locking the cache of jars")?;
    if jars.exists() {
        return Ok(jars);
    }
    let project = cache.join("log4j-project");
    fs::create_dir_all(&project)?;
    fs::write(project.join("pom.xml"), pom())?;
    let mut maven = Command::new("mvn");
    maven.args(["--quiet", "--batch-mode", "dependency:copy-dependencies", "-DoutputDirectory=lib"]);
    let output = maven.current_dir(&project).output().context("running mvn: apt-get install maven")?;
    ensure!(output.status.success(), "mvn: {}", String::from_utf8_lossy(&output.stdout));
    fs::rename(project.join("lib"), &jars).context("keeping the jars")?;
    Ok(jars)
}

fn pom() -> String {
    format!(
        "<project>\n<modelVersion>4.0.0</modelVersion>\n<groupId>dev.sidestep</groupId>\n\
         <artifactId>log4j-writer</artifactId>\n<version>1</version>\n<dependencies><dependency>\n\
         <groupId>org.apache.logging.log4j</groupId>\n<artifactId>log4j-core</artifactId>\n\
         <version>{LOG4J}</version>\n</dependency></dependencies>\n</project>\n"
    )
}
