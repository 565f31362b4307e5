//! The engine's task: connect, configure, serve until the shard is lost, and again.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use anaphora_core::{Eviction, Scheduler, SchedulerConfig, Stats};
use futures::FutureExt as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    EngineError, EngineEvent, ReplicaInfo, Status,
    handle::Command,
    session::{Context, MAX_IN_FLIGHT, Session},
};
use crate::{
    config::EngineConfig,
    shard::{Description, PoolRequest, Shard, ShardError},
};

/// Between two attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How long a start-up is expected to take before one was measured.
const START_UP: Duration = Duration::from_secs(10);

/// See the module's documentation.
pub(super) struct Task<S> {
    pub(super) shard: S,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) context: Context,
    pub(super) report: Box<dyn Fn(EngineEvent) + Send>,
}

/// Why a session ended.
enum End {
    /// Nothing is left to do, and nothing new is taken.
    Drained,
    /// Whatever is left must fail.
    Stopped,
    /// The shard failed.
    Lost(ShardError),
    /// The shard does not answer.
    Stalled,
}

impl<S: Shard> Task<S> {
    /// Runs until a drain or stop is complete. A panic in it aborts the process.
    pub(super) async fn run(self) {
        if let Err(panic) = AssertUnwindSafe(self.live()).catch_unwind().await {
            let reason = panic.downcast_ref::<String>().map(String::as_str);
            let reason = reason.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            tracing::error!(
                reason,
                "the engine task panicked, which is a bug; aborting so that nobody waits for it"
            );
            std::process::abort();
        }
    }

    async fn live(mut self) {
        let mut expected = START_UP;
        loop {
            self.context.shared.admission.set_ready_in(expected);
            let began = Instant::now();
            let Some(mut session) = self.start_up().await else { return };
            expected = began.elapsed();
            let end = self.serve(&mut session).await;
            match end {
                End::Drained => return,
                End::Stopped => return session.fail_all(&EngineError::ShuttingDown, &self.context),
                End::Lost(_) | End::Stalled => self.lose(session, &end, expected),
            }
            if self.context.shared.is_draining() {
                return;
            }
        }
    }

    /// Tries until the shard is configured, and answers commands meanwhile. `None`: the process is shutting down.
    async fn start_up(&mut self) -> Option<Session> {
        let mut backoff = BACKOFF.0;
        let mut last_error = None;
        loop {
            let attempt = attempt(&mut self.shard, &self.context);
            let error = match refusing(attempt, &mut self.commands, &self.context).await? {
                Ok((scheduler, info)) => {
                    self.announce(info);
                    return Some(Session::new(scheduler, &mut self.context));
                }
                Err(error) => error,
            };
            // The same words every second would bury the rest of the log.
            if last_error.as_ref() != Some(&error) {
                tracing::info!(%error, "the shard is not ready; trying again");
            }
            // A shard listens once it can answer, so one that listens and does not is stuck, and will not die of itself.
            if matches!(error, ShardError::Timeout { .. }) {
                (self.report)(EngineEvent::ShardStalled);
            }
            last_error = Some(error);
            refusing(sleep(backoff), &mut self.commands, &self.context).await?;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    fn announce(&self, info: ReplicaInfo) {
        let info = Arc::new(info);
        tracing::info!(
            device = info.device,
            dtype = info.dtype,
            context = info.context,
            kv_tokens = info.kv_tokens,
            "the replica is ready"
        );
        self.context.shared.status.send_replace(Status::Ready(Arc::clone(&info)));
        (self.report)(EngineEvent::Ready(info));
    }

    /// Steps until something ends the session.
    async fn serve(&mut self, session: &mut Session) -> End {
        let mut draining = self.context.shared.is_draining();
        loop {
            while let Ok(command) = self.commands.try_recv() {
                match apply(command, session, &mut self.context) {
                    Applied::Done => {}
                    Applied::Drain => draining = true,
                    Applied::Stop => return End::Stopped,
                }
            }
            if draining && session.is_idle() {
                return End::Drained;
            }
            if let Err(error) = session.fill(&mut self.shard, &self.context) {
                return End::Lost(error);
            }
            session.publish(&mut self.context);
            let deadline = session.deadline(self.context.config.step_timeout);
            tokio::select! {
                biased;
                output = self.shard.receive() => match output {
                    Err(error) => return End::Lost(error),
                    Ok(output) => if let Err(error) = session.commit(output, &mut self.context) {
                        return End::Lost(ShardError::Protocol { rank: 0, reason: error.to_string() });
                    },
                },
                command = self.commands.recv() => match command.map(|command| apply(command, session, &mut self.context)) {
                    Some(Applied::Done) => {}
                    Some(Applied::Drain) => draining = true,
                    // The context holds a sender, so the channel is never closed by the other side.
                    Some(Applied::Stop) | None => return End::Stopped,
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return End::Stalled,
            }
        }
    }

    /// Every sequence of the session fails; nothing of it is kept.
    fn lose(&mut self, session: Session, end: &End, expected: Duration) {
        let context = &mut self.context;
        context.metrics.shard_losses.increment(1);
        // Before the clients hear of it, so that one who comes back at once is told the truth.
        context.shared.status.send_replace(Status::Lost);
        context.shared.admission.set_ready_in(expected);
        let retry_after = context.shared.admission.until_ready();
        session.fail_all(&EngineError::ShardLost { retry_after }, context);
        context.metrics.scheduler_reset();
        context.publish(Stats::default());
        match end {
            End::Lost(error) => {
                tracing::error!(%error, "the shard was lost; connecting anew");
                (self.report)(EngineEvent::ShardLost { message: error.to_string() });
            }
            _ => {
                let seconds = context.config.step_timeout.as_secs_f64();
                tracing::error!(seconds, "the shard does not answer; taking it for lost");
                (self.report)(EngineEvent::ShardStalled);
            }
        }
    }
}

/// What a command means for the loop.
enum Applied {
    Done,
    Drain,
    Stop,
}

fn apply(command: Command, session: &mut Session, context: &mut Context) -> Applied {
    match command {
        Command::Submit(submission) if context.shared.is_draining() => {
            let _ = submission.reply.send(Err(EngineError::ShuttingDown));
        }
        Command::Submit(submission) => session.submit(submission, context),
        Command::Ask(question) => session.answer(question),
        Command::Cancel(id) => session.cancel(id, context),
        Command::Drain => return Applied::Drain,
        Command::Stop => return Applied::Stop,
    }
    Applied::Done
}

/// Waits for `work`, and refuses sequences meanwhile. `None`: the process is shutting down.
async fn refusing<T>(
    work: impl Future<Output = T>,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    context: &Context,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => match command? {
                Command::Drain | Command::Stop => return None,
                Command::Cancel(_) | Command::Ask(_) => {}
                Command::Submit(submission) => {
                    let retry_after = context.shared.admission.until_ready();
                    let _ = submission.reply.send(Err(EngineError::Unavailable { retry_after }));
                }
            },
            done = &mut work => return Some(done),
        }
    }
}

/// One attempt to connect and configure.
async fn attempt<S: Shard>(shard: &mut S, context: &Context) -> Result<(Scheduler, ReplicaInfo), ShardError> {
    let description = shard.connect().await?;
    if matches!(*context.shared.status.borrow(), Status::Starting { .. }) {
        context.shared.status.send_replace(Status::Starting { phase: "warm_up", percent: 50 });
    }
    let pool = pool_request(&context.config, &description);
    let num_blocks = shard.configure(&pool).await?;
    let scheduler = SchedulerConfig {
        num_blocks,
        block_size: pool.block_size,
        max_rows: pool.max_rows,
        max_step_tokens: pool.max_step_tokens,
        max_context: pool.max_context,
        max_in_flight: MAX_IN_FLIGHT,
        prefix_cache: context.config.prefix_cache,
        target_itl_us: target_itl(&context.config, &description).as_micros() as u64,
        max_queue_time_us: context.config.max_queue_time.map_or(u64::MAX, |time| time.as_micros() as u64),
        eviction: Eviction::default(),
        quotas: quotas(&context.config),
    };
    let scheduler = Scheduler::new(scheduler).map_err(|error| ShardError::Failed {
        rank: 0,
        call: "Configure",
        reason: error.to_string(),
    })?;
    Ok((scheduler, replica_info(description, &pool, num_blocks, context.config.prefix_cache)))
}

/// On a CPU a token takes longer by itself: a shorter time leaves many decoding rows no room for a chunk beside them.
fn target_itl(config: &EngineConfig, description: &Description) -> Duration {
    let default = if description.is_gpu() { Duration::from_millis(50) } else { Duration::from_millis(70) };
    config.target_itl.unwrap_or(default)
}

/// Tenants' quotas, in blocks.
fn quotas(config: &EngineConfig) -> BTreeMap<Arc<str>, u32> {
    let num_blocks = |tokens: u64| u32::try_from(tokens / u64::from(config.block_size)).unwrap_or(u32::MAX);
    config.cache_quotas.iter().map(|(tenant, tokens)| (Arc::clone(tenant), num_blocks(*tokens))).collect()
}

/// What the flags leave open depends on what the shard runs on.
fn pool_request(config: &EngineConfig, description: &Description) -> PoolRequest {
    let (default_rows, default_tokens) = if description.is_gpu() { (256, 4096) } else { (64, 512) };
    let max_live = u32::try_from(config.max_concurrent_requests).unwrap_or(u32::MAX);
    let max_rows = config.max_batch_size.unwrap_or(default_rows).min(max_live);
    let num_blocks = |tokens: u64| u32::try_from(tokens / u64::from(config.block_size)).unwrap_or(u32::MAX);
    PoolRequest {
        block_size: config.block_size,
        max_rows,
        max_step_tokens: config.max_batch_prefill_tokens.unwrap_or(default_tokens).max(max_rows),
        max_context: config.max_context.unwrap_or(u32::MAX).min(description.max_context),
        num_blocks: config.max_batch_total_tokens.map(num_blocks),
        memory_utilization: config.memory_utilization,
    }
}

fn replica_info(
    description: Description,
    pool: &PoolRequest,
    num_blocks: u32,
    prefix_cache: bool,
) -> ReplicaInfo {
    let kv_tokens = u64::from(num_blocks) * u64::from(pool.block_size);
    ReplicaInfo {
        fingerprint: description.fingerprint,
        architecture: description.architecture,
        device: description.device,
        dtype: description.dtype,
        world_size: description.world_size,
        vocab_size: description.vocab_size,
        context: pool.max_context.min(u32::try_from(kv_tokens).unwrap_or(u32::MAX)),
        kv_tokens,
        max_rows: pool.max_rows,
        max_step_tokens: pool.max_step_tokens,
        prefix_cache,
    }
}
