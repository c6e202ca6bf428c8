//! Sends many small blobs in one request.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    pack::Packer,
    run::Job,
    send::{Sent, read_whole},
    way::Mode,
};
use crate::{
    client::{ClientError, UploadBody, UploadOutcome},
    domain::BlobId,
    scan::ScannedFile,
    wire::write_blob,
};

/// Sends these, each from a file that had its content when it was scanned; each is verified by the server.
pub(super) async fn send_batch(
    job: &Arc<Job>,
    blobs: Vec<(BlobId, ScannedFile)>,
) -> Result<Vec<(BlobId, Sent)>, ClientError> {
    let total_bytes = blobs.iter().map(|(id, _)| id.size_bytes).sum();
    let name = format!("{} small files", blobs.len());
    let upload = job.options.line.begin(&name, total_bytes).await;
    let compresses = job.chooser().compresses(job.options.line.rate());
    let (root, buffers) = (job.root.clone(), job.buffers.clone());
    let read = move || {
        let mut packer = Packer::new(compresses).ok();
        let (mut body, mut there, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for (id, file) in blobs {
            match read_whole(root.join(file.path.as_str()), &file.fingerprint, &buffers) {
                Ok(content) => {
                    let packed = packer.as_mut().and_then(|packer| packer.pack(&content));
                    let name = file.path.as_str();
                    write_blob(&id.digest, name, &content, packed.as_deref(), &mut body);
                    there.push(id);
                }
                Err(_) => told.push((id, Sent::Changed)),
            }
        }
        (body, there, told)
    };
    let (body, there, mut told) = job.exec.blocking(read).await;
    if there.is_empty() {
        return Ok(told);
    }
    let sent_bytes = body.len() as u64;
    upload.pass(sent_bytes).await;
    job.sent_bytes.fetch_add(sent_bytes, Relaxed);
    let body = UploadBody::Whole(body.into());
    match job.client.send_batch(body, there.len()).await {
        Err(
            error @ (ClientError::Full { .. }
            | ClientError::Refused { .. }
            | ClientError::Untrusted { .. }),
        ) => return Err(error),
        Err(error) => {
            // Somebody on the way does not let it through. One by one they go, or tell what is wrong.
            tracing::debug!("small files go one by one: {error}");
            job.chooser().no_batches();
            told.extend(there.into_iter().map(|id| (id, Sent::Interrupted)));
        }
        Ok(Ok(outcomes)) => {
            for (id, outcome) in there.into_iter().zip(outcomes) {
                let outcome = outcome?;
                if outcome == UploadOutcome::Stored {
                    job.tally.count(Mode::Batch, id.size_bytes);
                }
                if matches!(outcome, UploadOutcome::Stored | UploadOutcome::AlreadyStored) {
                    job.progress.add_bytes(id.size_bytes);
                }
                told.push((id, Sent::Outcome(outcome)));
            }
        }
        // The same for each.
        Ok(Err(outcome)) => {
            told.extend(there.into_iter().map(|id| (id, Sent::Outcome(outcome.clone()))));
        }
    }
    Ok(told)
}
