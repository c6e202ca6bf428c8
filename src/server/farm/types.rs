//! Job types, read from a directory each time somebody asks: who edits one needs to tell nobody.

use std::{fs, io, path::PathBuf, sync::Mutex};

use crate::jobs::{BadType, JobType, SIMPLE_BLENDER_RENDER};

/// The definitions in a directory, and ours.
#[derive(Debug)]
pub struct JobTypes {
    dir: Option<PathBuf>,
    /// What was last said to be wrong, so that it is said once.
    said: Mutex<Vec<String>>,
}

/// A file that defines no job type.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {problem}")]
pub struct BadFile {
    /// Which.
    pub file: String,
    /// What is wrong with it.
    pub problem: String,
}

impl JobTypes {
    /// Those of a directory; files that end in `.json` count. Without a directory, ours alone.
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, said: Mutex::default() }
    }

    /// All of them by name, and what is wrong with the others.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn read(&self) -> io::Result<(Vec<JobType>, Vec<BadFile>)> {
        let ours = JobType::from_json(SIMPLE_BLENDER_RENDER).expect("BUG: ours is one");
        let (mut types, mut bad) = (Vec::<JobType>::new(), Vec::new());
        if let Some(dir) = &self.dir {
            let mut paths: Vec<PathBuf> =
                fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
            paths.sort();
            for path in paths {
                let read = fs::read_to_string(&path).map_err(|error| error.to_string());
                let parsed = read.and_then(|text| {
                    JobType::from_json(&text).map_err(|error: BadType| error.to_string())
                });
                let problem = match parsed {
                    Ok(found) if types.iter().any(|other| other.name == found.name) => {
                        format!("there is another job type {:?}", found.name)
                    }
                    Ok(found) => {
                        types.push(found);
                        continue;
                    }
                    Err(problem) => problem,
                };
                bad.push(BadFile { file: path.display().to_string(), problem });
            }
        }
        if types.iter().all(|one| one.name != ours.name) {
            types.push(ours);
        }
        types.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((types, bad))
    }

    /// Those that can be used. What is wrong with others is logged once.
    pub(super) fn usable(&self) -> io::Result<Vec<JobType>> {
        let (types, bad) = self.read()?;
        let bad: Vec<String> = bad.iter().map(BadFile::to_string).collect();
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for problem in bad.iter().filter(|problem| !said.contains(problem)) {
            tracing::error!("a job type is left out: {problem}");
        }
        *said = bad;
        Ok(types)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_define_types_and_can_replace_ours() {
        let ours = JobTypes::new(None).read().unwrap().0;
        assert_eq!(ours.len(), 1);
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let types = JobTypes::new(Some(dir.path().to_owned()));
        let names = || {
            let (types, bad) = types.read().unwrap();
            let names: Vec<_> = types.into_iter().map(|one| one.name).collect();
            (names.join(" "), bad)
        };
        assert_eq!(names().0, "simple-blender-render");
        write("b.json", r#"{"name": "comp", "label": "Comp", "settings": []}"#);
        write("notes.txt", "no json");
        assert_eq!(names().0, "comp simple-blender-render");
        write("c.json", r#"{"name": "comp", "label": "Other", "settings": []}"#);
        write("d.json", "{");
        let (found, bad) = names();
        assert_eq!(found, "comp simple-blender-render");
        assert!(bad[0].to_string().contains("c.json: there is another job type \"comp\""));
        assert!(bad[1].to_string().contains("d.json: it is no job type"), "{}", bad[1]);
        write("a.json", r#"{"name": "simple-blender-render", "label": "Mine", "settings": []}"#);
        let types = types.usable().unwrap();
        assert_eq!((types.len(), types[1].label.as_str()), (2, "Mine"));
        let missing = JobTypes::new(Some(dir.path().join("missing")));
        assert!(missing.read().is_err());
    }
}
