//! Writes a run with invented figures, and its page, into a new directory: to look at the page.

#[path = "../tests/it/fake_run.rs"]
mod fake_run;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: fake_report DIR")?;
    let run = fake_run::write(std::path::Path::new(&dir));
    fake_run::rl(&run);
    dokja_report::write(&run)?;
    Ok(())
}
