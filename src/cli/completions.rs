//! `farmhand completions SHELL`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{
    Cli,
    exit::{Exit, Failure},
};

/// Print the completions for a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell to print completions for
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub fn run(&self) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "farmhand", &mut script);
        super::print(String::from_utf8_lossy(&script).trim_end())?;
        Ok(Exit::Done)
    }
}
