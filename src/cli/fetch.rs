//! `farmhand store get`: a blob goes to a file or to standard output.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use bytes::Bytes;
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure},
    not_written,
    session::Session,
    store::json_answer,
};
use crate::{disk::TempFile, domain::BlobId, meter::Phase};

/// What is fetched goes here.
enum Target {
    /// Piece by piece: whoever reads on sees by the exit code whether it was right.
    Stdout,
    /// Here, until all of it has come and is right.
    File(TempFile),
}

impl Target {
    fn write(&mut self, piece: &Bytes) -> Result<(), Failure> {
        match self {
            Self::Stdout => io::stdout().write_all(piece).map_err(|error| not_written(&error)),
            Self::File(file) => Ok(file.write(piece)?),
        }
    }
}

/// Fetches a blob.
pub(super) async fn get(
    context: &Context,
    session: &Session,
    id: BlobId,
    output: Option<PathBuf>,
) -> Result<Exit, Failure> {
    let (exec, progress) = (&session.scans.exec, &session.scans.progress);
    let mut target = match &output {
        None if context.json => {
            let message = "with --json, say with --output where the file is to go";
            return Err(Failure::new(Exit::Usage, message));
        }
        None => Target::Stdout,
        Some(file) => {
            if file.file_name().is_none() || file.is_dir() {
                let message = format!("{} is a directory; give a file in it", file.display());
                return Err(Failure::new(Exit::Usage, message));
            }
            // Beside it, so that it can be given the name.
            let temp = format!(".{:016x}.farmhand-tmp", fastrand::u64(..));
            let temp = file.with_file_name(temp);
            Target::File(exec.blocking(move || TempFile::create_writable(temp)).await?)
        }
    };
    progress.enter(Phase::Fetching);
    progress.expect(1, id.size_bytes);
    let mut download = session.client.download(id);
    while let Some(piece) = download.next().await? {
        let bytes = piece.len() as u64;
        target = exec.blocking(move || target.write(&piece).map(|()| target)).await?;
        progress.add_bytes(bytes);
    }
    match (target, output) {
        (Target::File(temp), Some(file)) => {
            let to = file.clone();
            exec.blocking(move || temp.sync().and_then(|()| temp.publish(&to))).await?;
            if context.json {
                let (sha, path) = (id.digest, file.to_string_lossy());
                let answer = json!({ "sha256": sha, "size": id.size_bytes, "path": path });
                return json_answer("get", &answer);
            }
        }
        _ => exec.blocking(|| io::stdout().flush()).await.map_err(|error| not_written(&error))?,
    }
    Ok(Exit::Done)
}
