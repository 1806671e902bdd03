//! `tollgate demo --story`: what an outage, its retries and its recovery look like, told in two minutes.

use std::io::Write as _;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::client::SidecarClient;
use super::traffic::{CallerTotals, DemoCallers};
use crate::emulator::{Emulator, Fault};
use crate::telemetry::SidecarStatus;

/// Messages a second, over five topics.
const RATE: u32 = 200;
const FAILURE: &str = "SendMessageFailed";
/// Between two lines of figures.
const FIGURES_EVERY: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_secs(20);
const OUTAGE: Duration = Duration::from_secs(30);
/// How long a recovery is shown, at least; and how long it may take, whatever the pace.
const RECOVERY: Duration = Duration::from_secs(20);
const LONGEST_RECOVERY: Duration = Duration::from_mins(2);
/// A backlog of fewer messages is that of calls under way.
const FEW: u64 = 10;

/// Where the story happens.
pub(super) struct Story<'a> {
    pub(super) callers: DemoCallers,
    pub(super) provider: &'a Emulator,
    /// The address of the sidecar's page.
    pub(super) telemetry: String,
    /// 1 for a person; a test has less time.
    pub(super) pace: f64,
}

impl Story<'_> {
    /// Tells it.
    ///
    /// # Errors
    /// If the sidecar does not answer, does not recover, or the totals do not agree.
    pub(super) async fn tell(&self) -> Result<(), String> {
        tokio::select! {
            // It never ends.
            () = self.callers.publish(RATE) => {}
            told = self.stages() => told?,
        }
        self.totals().await
    }

    async fn stages(&self) -> Result<(), String> {
        say(&format!(
            "A story in five parts, of about two minutes. Look at http://{}/ meanwhile.\n",
            self.telemetry
        ));
        say(&format!(
            "1/5  Calm. Callers publish {RATE} messages a second to five topics. Each is delivered at once: \
             200.\n     Look at: Accepted 100 %, message TPS {RATE}, backlog empty."
        ));
        self.watch(CALM).await?;

        say(&format!(
            "\n2/5  Outage. The provider fails every call ({FAILURE}).\n     Callers are answered 202: tollgate \
             has their messages on the disk. It tries each topic with one call at a time.\n     Look at: the \
             problem at the top, no message delivered, the backlog that grows."
        ));
        self.fail(vec![Fault::answer(FAILURE)])?;
        self.watch(OUTAGE).await?;

        say(
            "\n3/5  Recovery. The provider works again. The next call of each topic notices it, and groups of \
             retries follow, which double.\n     Look at: message TPS above the callers' rate, the backlog that \
             shrinks, when it will be empty.",
        );
        self.fail(Vec::new())?;
        self.recover().await?;

        say(
            "\n4/5  One topic fails: Alarm. The others do not wait for it.\n     Look at: Alarm among the paused \
             topics; the callers of the other four get 200.",
        );
        self.fail(vec![Fault { topic: Some("Alarm".to_owned()), ..Fault::answer(FAILURE) }])?;
        self.watch(CALM).await?;
        say("     It works again.");
        self.fail(Vec::new())?;
        self.recover().await
    }

    fn fail(&self, faults: Vec<Fault>) -> Result<(), String> {
        self.provider.set_faults(faults).map_err(|error| error.to_string())
    }

    /// Shows figures for so long.
    async fn watch(&self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time.mul_f64(self.pace);
        while Instant::now() < end {
            self.figures().await?;
        }
        Ok(())
    }

    /// Shows figures until the backlog is empty.
    async fn recover(&self) -> Result<(), String> {
        let least = Instant::now() + RECOVERY.mul_f64(self.pace);
        let empty = async {
            loop {
                let backlog = self.figures().await?;
                if backlog < FEW && Instant::now() >= least {
                    return Ok::<(), String>(());
                }
            }
        };
        let late = "the backlog did not get empty: this machine may be too busy".to_owned();
        timeout(LONGEST_RECOVERY, empty).await.unwrap_or(Err(late))
    }

    /// A line of what became of messages since the line before. Returns the backlog.
    async fn figures(&self) -> Result<u64, String> {
        let (before, start) = (self.callers.totals(), Instant::now());
        sleep(FIGURES_EVERY.mul_f64(self.pace)).await;
        let counts = self.callers.totals().since(before);
        let seconds = start.elapsed().as_secs_f64();
        let per_second = |n: u64| format!("{:.0}/s", n as f64 / seconds);
        let CallerTotals { delivered, stored, refused, failed, .. } = counts;
        let mut line = format!(
            "     callers: {} delivered, {} stored",
            per_second(delivered),
            per_second(stored)
        );
        for (n, word) in [(refused, "refused"), (failed, "failed")] {
            if n > 0 {
                line.extend([format!(", {} {word}", per_second(n))]);
            }
        }
        let status = self.status().await?;
        line.extend([format!(
            "; message TPS {}; backlog {}, {}",
            status.tps, status.backlog.messages, status.backlog.outlook
        )]);
        if let Some(worst) = status.concerns.first() {
            line.extend([format!("; {}: {}", worst.level.word(), worst.title)]);
        }
        say(&line);
        Ok(status.backlog.messages)
    }

    /// What the page shows.
    async fn status(&self) -> Result<SidecarStatus, String> {
        let mut sidecar = SidecarClient::at(&self.telemetry).await?;
        let body = sidecar.get("/status.json").await?;
        sidecar.read(&body)
    }

    /// What callers, tollgate and the provider have counted.
    async fn totals(&self) -> Result<(), String> {
        self.callers.settled().await;
        let empty = async {
            loop {
                let status = self.status().await?;
                if status.kept.as_ref().is_none_or(|kept| kept.queued == 0) {
                    return Ok::<_, String>(status);
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let late = "the backlog did not get empty at the end".to_owned();
        let status = timeout(LONGEST_RECOVERY, empty).await.unwrap_or(Err(late))?;
        let (callers, report) = (self.callers.totals(), self.provider.report());
        let (accepted, twice) = (report.accepted, report.duplicates);
        let CallerTotals { delivered, stored, refused, failed, unanswered } = callers;
        say(&format!(
            "\n5/5  Totals.\n     callers   {} published: {delivered} delivered (200), {stored} stored (202), \
             {refused} refused, {} failed\n     provider  {accepted} accepted, {twice} of them twice; {} calls \
             not accepted\n     tollgate  {} billed, {} uncertain; {:.4} {}",
            callers.sum(),
            failed + unanswered,
            report.refused.values().sum::<u64>(),
            status.billable,
            status.uncertain,
            status.spend.today.spend,
            status.spend.currency,
        ));
        // A call of unknown outcome may have delivered, whatever its caller was answered.
        let promised = delivered + stored;
        let at_most = promised + failed + unanswered;
        let is_kept = (promised..=at_most).contains(&(accepted - twice));
        let is_billed = (status.billable..=status.billable + status.uncertain).contains(&accepted);
        if !is_kept || !is_billed {
            return Err("the totals do not agree".to_owned());
        }
        say(
            "     They agree: every message that was answered 200 or 202 is at the provider, and what tollgate \
             billed is what the provider took.",
        );
        Ok(())
    }
}

/// A reader that is gone ends no story.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).ok();
}
