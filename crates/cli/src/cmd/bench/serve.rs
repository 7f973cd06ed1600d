//! `dokja bench serve`: many clients of an OpenAI-compatible server, and how long each waits.
//!
//! Requests arrive by a Poisson process: the gaps between them are exponential, of mean 1 / request rate, from a
//! seed; without a rate they are all there at once. Each is a streamed `POST <base>/completions` of random ids, in
//! a thread of its own (of at most so many). From the stream follow
//!
//! ```text
//! ttft   time to first token: from sending to the first piece of text
//! itl    inter-token latency: from a piece of text to the next, all gaps of all requests together
//! rate   tokens of all answers by the time from the first request to the last answer
//! ```
//! Tokens are counted as the server counts them; where it does not, by the pieces. A server that collects tokens
//! into one piece therefore has fewer and longer gaps.

use crate::progress::{Progress, Unit, tell};
use crate::{env, interrupt, print};
use anyhow::{Result, bail};
use eval::server::{Server, ServerOptions};
use numerics::Rng;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Puts a server under load and tells how long its answers take.
///
/// Prompts are random token ids, sent to /v1/completions and streamed. Flags are called as in vLLM's benchmark.
/// DOKJA_API_KEY is sent where it is set.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja bench serve http://127.0.0.1:8000 --num-prompts 64 --max-concurrency 8 --ignore-eos
  dokja bench serve http://127.0.0.1:8000 --request-rate 2 --random-input-len 512 --random-output-len 64 --json")]
pub(crate) struct Args {
    /// The API's base, with or without /v1.
    url: String,
    /// The model's name [default: the first that the server lists].
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Requests in all.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    num_prompts: u32,
    /// Requests a second that arrive on average; inf: all at once.
    #[arg(long, value_name = "R", default_value_t = f64::INFINITY, value_parser = rate)]
    request_rate: f64,
    /// Requests under way at once; later ones wait here, which is not counted.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_concurrency: u32,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    random_input_len: u32,
    /// Tokens of an answer, at most.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    random_output_len: u32,
    /// Ids are drawn below this; the server's vocabulary must not be smaller.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    vocab_size: u32,
    /// Ask that no answer ends early, which dokja and vLLM know how to do.
    #[arg(long)]
    ignore_eos: bool,
    /// Where the random numbers start.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0, or inf".to_owned()),
    }
}

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Longest line of a stream that is read.
const MAX_LINE_BYTES: u64 = 1 << 20;

pub(crate) fn run(args: &Args) -> Result<()> {
    interrupt::listen()?;
    let options = ServerOptions {
        api_key: env::api_key(),
        model: args.model.clone(),
        ..ServerOptions::default()
    };
    let server = Server::connect(&args.url, options)?;
    let client = Client::new(args, &server);
    tell(&format!("asking {} at {}", server.model(), server.base()));
    let (answers, seconds) = load(args, &client)?;
    let failed: Vec<&String> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
    let answers: Vec<&Answer> = answers.iter().filter_map(|a| a.as_ref().ok()).collect();
    if let Some(first) = failed.first() {
        tell(&format!(
            "{} of {} requests failed, the first so: {first}",
            failed.len(),
            args.num_prompts
        ));
    }
    if answers.is_empty() {
        bail!("no request was answered");
    }
    let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
    let mut ttft: Vec<f64> = answers.iter().map(|answer| answer.ttft).collect();
    let mut itl: Vec<f64> = answers.iter().flat_map(|a| a.gaps.clone()).collect();
    let per_sec = tokens as f64 / seconds;
    let [ttft_p50, ttft_p99] = percentiles(&mut ttft).map(|s| s.map(|s| 1e3 * s));
    let [itl_p50, itl_p99] = percentiles(&mut itl).map(|s| s.map(|s| 1e3 * s));
    print(&match args.json {
        true => json!({
            "tokens_per_sec": per_sec,
            "ttft_ms_p50": ttft_p50,
            "ttft_ms_p99": ttft_p99,
            "itl_ms_p50": itl_p50,
            "itl_ms_p99": itl_p99,
            "errors": failed.len(),
            "requests_per_sec": answers.len() as f64 / seconds,
            "answers": answers.len(),
            "output_tokens": tokens,
            "input_tokens": answers.len() as u64 * u64::from(args.random_input_len),
            "seconds": seconds,
            "model": server.model(),
            "max_concurrency": args.max_concurrency,
            "request_rate": args.request_rate.is_finite().then_some(args.request_rate),
        })
        .to_string(),
        false => {
            let ms = |x: Option<f64>| x.map_or("none".to_owned(), |x| format!("{x:.1} ms"));
            format!(
                "{per_sec:.1} tokens/s, {} answers in {seconds:.1} s, {} errors\n\
                 time to first token   {} at the median, {} for 99 %\n\
                 from token to token   {} at the median, {} for 99 %",
                answers.len(),
                failed.len(),
                ms(ttft_p50),
                ms(ttft_p99),
                ms(itl_p50),
                ms(itl_p99),
            )
        }
    });
    Ok(())
}

/// What one request took.
#[derive(Debug, Default)]
struct Answer {
    ttft: f64,      // seconds
    gaps: Vec<f64>, // seconds from each piece to the next
    tokens: u64,
}

/// Sends all requests when their time has come; each answer or what went wrong, and the seconds of it all.
fn load(args: &Args, client: &Client) -> Result<(Vec<Result<Answer, String>>, f64)> {
    let count = args.num_prompts as usize;
    let mut rng = Rng::new(args.seed, "bench serve");
    let mut at = 0.0;
    let requests: Vec<(f64, String)> = (0..count)
        .map(|_| {
            let arrival = at;
            at -= (1.0 - rng.uniform()).ln() / args.request_rate;
            (arrival, client.body(&mut rng))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    let began = Instant::now();
    let mut answers = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..count.min(args.max_concurrency as usize) {
            let (sender, next, requests) = (sender.clone(), &next, &requests);
            scope.spawn(move || {
                while let Some((arrival, body)) = requests.get(next.fetch_add(1, Ordering::Relaxed))
                    && wait_until(began + Duration::from_secs_f64(*arrival))
                    && sender.send(client.ask(body)).is_ok()
                {}
            });
        }
        drop(sender);
        let mut progress = Progress::new("answers", Unit::Of("requests"), 0, count as u64);
        for answer in receiver.iter() {
            answers.push(answer);
            progress.set(answers.len() as u64);
        }
        progress.finish();
    });
    let seconds = began.elapsed().as_secs_f64();
    if interrupt::is_asked() {
        bail!(interrupt::Interrupted("nothing was measured".into()));
    }
    Ok((answers, seconds))
}

/// Sleeps, in naps that let an interruption through; false when there was one.
fn wait_until(time: Instant) -> bool {
    while !interrupt::is_asked() {
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    false
}

/// What all requests share.
struct Client {
    agent: ureq::Agent,
    url: String,
    bearer: Option<String>,
    fields: Value,
    input_len: u32,
    vocab_size: u32,
}

impl Client {
    fn new(args: &Args, server: &Server) -> Client {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_idle_connections(args.max_concurrency as usize)
            .max_idle_connections_per_host(args.max_concurrency as usize)
            .build();
        let mut fields = json!({
            "model": server.model(),
            "max_tokens": args.random_output_len,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if args.ignore_eos {
            fields["ignore_eos"] = json!(true);
        }
        Client {
            agent: config.into(),
            url: format!("{}/completions", server.base()),
            bearer: env::api_key().map(|key| format!("Bearer {key}")),
            fields,
            input_len: args.random_input_len,
            vocab_size: args.vocab_size,
        }
    }

    fn body(&self, rng: &mut Rng) -> String {
        let ids = (0..self.input_len).map(|_| rng.below(self.vocab_size as usize));
        let mut body = self.fields.clone();
        body["prompt"] = ids.collect();
        body.to_string()
    }

    fn ask(&self, body: &str) -> Result<Answer, String> {
        let mut request = self.agent.post(&self.url);
        request = request.header("content-type", "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header("authorization", bearer);
        }
        let sent = Instant::now();
        let mut response = request.send(body).map_err(|e| e.to_string())?;
        let status = response.status();
        if !status.is_success() {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            let text: String = text.chars().take(300).collect();
            return Err(format!("{} answers {status}: {text}", self.url));
        }
        read(BufReader::new(response.body_mut().as_reader()), sent)
    }
}

/// Times the pieces of a stream of server-sent events.
fn read(mut stream: impl BufRead, sent: Instant) -> Result<Answer, String> {
    let mut answer = Answer::default();
    let (mut last, mut pieces, mut counted) = (None::<Instant>, 0, None);
    let mut line = String::new();
    loop {
        line.clear();
        let read = std::io::Read::take(&mut stream, MAX_LINE_BYTES).read_line(&mut line);
        if read.map_err(|e| e.to_string())? == 0 {
            return Err("the stream ended before its [DONE]".to_owned());
        }
        let Some(data) = line.strip_prefix("data:").map(str::trim) else {
            continue; // between events
        };
        if data == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(data).map_err(|e| format!("{e} in {data}"))?;
        if let Some(error) = event.get("error") {
            return Err(error.to_string());
        }
        counted = event["usage"]["completion_tokens"].as_u64().or(counted);
        let text = event["choices"][0]["text"].as_str().unwrap_or_default();
        if !text.is_empty() {
            let now = Instant::now();
            match last {
                None => answer.ttft = (now - sent).as_secs_f64(),
                Some(last) => answer.gaps.push((now - last).as_secs_f64()),
            }
            last = Some(now);
            pieces += 1;
        }
    }
    last.ok_or("an answer without text")?;
    answer.tokens = counted.unwrap_or(pieces);
    Ok(answer)
}

/// The median and what 99 of 100 are not above; of nothing, nothing.
fn percentiles(values: &mut [f64]) -> [Option<f64>; 2] {
    values.sort_by(f64::total_cmp);
    // The smallest value that the share of values is not above.
    let at = |share: f64| (share * values.len() as f64).ceil() as usize;
    [0.5, 0.99].map(|share| values.get(at(share).saturating_sub(1)).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "data: {\"choices\": [{\"text\": \"a\"}], \"usage\": null}\n\n\
        : a comment\n\
        data: {\"choices\": [{\"text\": \"\"}]}\n\n\
        data: {\"choices\": [{\"text\": \"b\", \"finish_reason\": \"length\"}]}\n\n\
        data: {\"choices\": [], \"usage\": {\"completion_tokens\": 5}}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn pieces_of_text_are_timed_and_tokens_counted_as_the_server_does() {
        let answer = read(STREAM.as_bytes(), Instant::now()).unwrap();
        assert_eq!((answer.gaps.len(), answer.tokens), (1, 5));
        let without_usage = STREAM.replace("completion_tokens", "other");
        let answer = read(without_usage.as_bytes(), Instant::now()).unwrap();
        assert_eq!(answer.tokens, 2);
    }

    #[test]
    fn a_stream_that_is_cut_broken_or_an_error_is_no_answer() {
        let (cut, _) = STREAM.split_once("data: [DONE]").unwrap();
        for (stream, what) in [
            (cut, "before its [DONE]"),
            ("data: {\n", "EOF"),
            ("data: {\"error\": {\"message\": \"full\"}}\n", "full"),
            ("data: [DONE]\n", "without text"),
        ] {
            let told = read(stream.as_bytes(), Instant::now()).unwrap_err();
            assert!(told.contains(what), "{told}");
        }
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let mut values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentiles(&mut values), [Some(100.0), Some(198.0)]);
        assert_eq!(percentiles(&mut [7.0]), [Some(7.0); 2]);
        assert_eq!(percentiles(&mut []), [None; 2]);
    }
}
