//! The step protocol's client against a server in this process, over Unix sockets: the fake shard behind real gRPC.
//!
//! These tests speak protobuf, and with real sockets time cannot be paused.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use anaphora_core::{
    BlockCopy, BlockId, BlockTableDelta, FinishReason, Row, RowInput, RowStart, Sampling, Slot, StepId,
    StepPlan,
};
use anaphora_proto::shard as proto;
use anaphora_router::{
    config::EngineConfig,
    engine::{EngineError, EngineEvent},
    shard::{
        PoolRequest, Shard as _, ShardError,
        fake::{FakeControl, FakeOptions, FakeShard},
        grpc::{GrpcOptions, GrpcShard},
    },
};
use futures::{Stream, StreamExt as _, future::join_all};
use prost::Message as _;
use tokio::{
    net::UnixListener,
    sync::{Mutex, mpsc},
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::rig::{read, read_tokens, request, start};

/// One rank of a fake replica, as a gRPC service.
#[derive(Clone)]
struct Rank {
    description: proto::DescribeResponse,
    num_blocks: u64,
    shard: Arc<Mutex<FakeShard>>,
    seen: mpsc::UnboundedSender<proto::Step>,
    killed: CancellationToken,
}

#[tonic::async_trait]
impl proto::shard_server::Shard for Rank {
    type ExecuteStream = Pin<Box<dyn Stream<Item = Result<proto::StepResult, Status>> + Send>>;

    async fn describe(
        &self,
        _: Request<proto::DescribeRequest>,
    ) -> Result<Response<proto::DescribeResponse>, Status> {
        Ok(Response::new(self.description.clone()))
    }

    async fn configure(
        &self,
        request: Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureResponse>, Status> {
        let request = request.into_inner();
        let pool = PoolRequest {
            block_size: request.block_size,
            max_rows: request.max_rows,
            max_step_tokens: request.max_step_tokens,
            max_context: request.max_context,
            num_blocks: Some(u32::try_from(self.num_blocks).unwrap()),
            memory_utilization: request.memory_utilization,
        };
        let mut shard = self.shard.lock().await;
        shard.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        shard.configure(&pool).await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(proto::ConfigureResponse { num_blocks: self.num_blocks }))
    }

    async fn execute(
        &self,
        request: Request<Streaming<proto::Step>>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let rank = self.clone();
        let results = request.into_inner().then(move |step| {
            let rank = rank.clone();
            async move { rank.step(step?).await }
        });
        Ok(Response::new(Box::pin(results.take_until(self.killed.clone().cancelled_owned()))))
    }
}

impl Rank {
    async fn step(&self, step: proto::Step) -> Result<proto::StepResult, Status> {
        let plan = plan(&step);
        let _ = self.seen.send(step);
        let mut shard = self.shard.lock().await;
        let executed = shard.send(&plan, "").map_err(|error| Status::invalid_argument(error.to_string()));
        executed?;
        let output = shard.receive().await.map_err(|error| Status::unavailable(error.to_string()))?;
        if self.description.rank > 0 {
            return Ok(proto::StepResult { id: output.id.0, ..proto::StepResult::default() });
        }
        let top = (0..).zip(&output.samples).filter(|(_, sample)| !sample.top.is_empty());
        Ok(proto::StepResult {
            id: output.id.0,
            tokens: output.samples.iter().flat_map(|sample| sample.token.to_le_bytes()).collect(),
            logprobs: output.samples.iter().flat_map(|sample| sample.logprob.to_le_bytes()).collect(),
            top: top
                .map(|(index, sample)| proto::TopLogprobs {
                    index,
                    tokens: sample.top.iter().flat_map(|(token, _)| token.to_le_bytes()).collect(),
                    logprobs: sample.top.iter().flat_map(|(_, logprob)| logprob.to_le_bytes()).collect(),
                })
                .collect(),
            duration_us: 1,
        })
    }
}

/// The plan that a message says.
fn plan(step: &proto::Step) -> StepPlan {
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
    };
    let start = |start: &proto::RowStart| {
        let sampling = start.sampling.clone().unwrap();
        RowStart {
            slot: Slot(start.slot),
            sampling: Arc::new(Sampling {
                temperature: sampling.temperature,
                seed: sampling.seed,
                num_top_logprobs: sampling.num_top_logprobs,
                min_new_tokens: sampling.min_new_tokens,
                ..Sampling::default()
            }),
            stop_tokens: words(&sampling.stop_tokens).into(),
            num_generated: start.num_generated,
            history: words(&start.history),
            num_prompt_tokens: start.num_prompt_tokens,
        }
    };
    let mut tokens = words(&step.tokens).into_iter();
    let (positions, num_tokens) = (words(&step.positions), words(&step.num_tokens));
    let row = |(index, slot): (usize, &u32)| Row {
        slot: Slot(*slot),
        position: positions[index],
        input: if step.flags[index] & 2 == 0 {
            RowInput::LastSampled
        } else {
            RowInput::Tokens(tokens.by_ref().take(num_tokens[index] as usize).collect())
        },
        sample: step.flags[index] & 1 != 0,
    };
    StepPlan {
        id: StepId(step.id),
        finished: words(&step.finished).into_iter().map(Slot).collect(),
        started: step.started.iter().map(start).collect(),
        block_tables: step
            .block_tables
            .iter()
            .map(|delta| BlockTableDelta {
                slot: Slot(delta.slot),
                start: delta.start,
                blocks: words(&delta.blocks).into_iter().map(BlockId).collect(),
            })
            .collect(),
        block_copies: words(&step.block_copies)
            .chunks(2)
            .map(|pair| BlockCopy { source: BlockId(pair[0]), destination: BlockId(pair[1]) })
            .collect(),
        rows: words(&step.slots).iter().enumerate().map(row).collect(),
    }
}

/// A replica of fake ranks behind sockets.
struct Replica {
    directory: tempfile::TempDir,
    controls: Vec<FakeControl>,
    seen: mpsc::UnboundedReceiver<proto::Step>,
    killed: CancellationToken,
}

impl Replica {
    /// `world_size` ranks, after `edit` has had its way with what they say of themselves.
    fn start(world_size: u32, edit: impl Fn(&mut proto::DescribeResponse, &mut u64)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut replica = Self::at(directory);
        replica.serve(world_size, edit);
        replica
    }

    fn at(directory: tempfile::TempDir) -> Self {
        let (_, seen) = mpsc::unbounded_channel();
        Self { directory, controls: Vec::new(), seen, killed: CancellationToken::new() }
    }

    fn serve(&mut self, world_size: u32, edit: impl Fn(&mut proto::DescribeResponse, &mut u64)) {
        let (seen_by, seen) = mpsc::unbounded_channel();
        (self.seen, self.killed) = (seen, CancellationToken::new());
        self.controls.clear();
        for rank in 0..world_size {
            let mut description = proto::DescribeResponse {
                fingerprint: "f00d".to_owned(),
                architecture: "FakeForCausalLM".to_owned(),
                dtype: "float32".to_owned(),
                kv_cache_dtype: "float32".to_owned(),
                device: "cpu".to_owned(),
                rank,
                world_size,
                vocab_size: 1000,
                max_context: 4096,
                ..proto::DescribeResponse::default()
            };
            let mut num_blocks = 64;
            edit(&mut description, &mut num_blocks);
            let (shard, control) = FakeShard::new(FakeOptions::default());
            self.controls.push(control);
            let shard = Arc::new(Mutex::new(shard));
            let (seen, killed) = (seen_by.clone(), self.killed.clone());
            spawn(serve_rank(Rank { description, num_blocks, shard, seen, killed }, self.socket(rank)));
        }
    }

    fn socket(&self, rank: u32) -> PathBuf {
        self.directory.path().join(format!("shard-{rank}.sock"))
    }

    fn client(&self) -> GrpcShard {
        let num_ranks = u32::try_from(self.controls.len().max(1)).unwrap();
        let options = GrpcOptions {
            describe_timeout: Duration::from_millis(300),
            configure_timeout: Duration::from_millis(300),
            ..GrpcOptions::default()
        };
        GrpcShard::new((0..num_ranks).map(|rank| self.socket(rank)).collect(), options)
    }
}

/// Serves until it is killed, connections and all.
async fn serve_rank(rank: Rank, socket: PathBuf) {
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let killed = rank.killed.clone();
    let server = tonic::transport::Server::builder().add_service(proto::shard_server::ShardServer::new(rank));
    tokio::select! {
        served = server.serve_with_incoming(listener) => served.unwrap(),
        () = killed.cancelled() => {}
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    #[allow(clippy::disallowed_methods, reason = "the test's runtime ends with the test")]
    tokio::spawn(task);
}

async fn connected(replica: &Replica) -> GrpcShard {
    let mut client = replica.client();
    while client.connect().await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client
}

#[tokio::test]
async fn sequences_get_their_tokens_from_one_rank_and_from_three() {
    for world_size in [1, 3] {
        let mut replica = Replica::start(world_size, |_, _| {});
        let (engine, _events) = start(replica.client(), EngineConfig::default());
        engine.ready().await;
        let requests: Vec<_> = (0..20).map(|index| request(0..10 + index, 30)).collect();
        let generations = join_all(requests.iter().map(|request| engine.submit(request.clone()))).await;
        let outcomes = join_all(generations.into_iter().map(|generation| read(generation.unwrap()))).await;
        for (request, outcome) in requests.iter().zip(outcomes) {
            let expected =
                FakeShard::continuation(&FakeOptions::default(), &request.prompt, &request.sampling, 30);
            assert_eq!((outcome.tokens, outcome.end), (expected, Ok(FinishReason::Length)));
        }
        // Every rank saw the same bytes.
        let mut steps = Vec::new();
        while let Ok(step) = replica.seen.try_recv() {
            steps.push((step.id, step.encode_to_vec()));
        }
        steps.sort();
        for ranks in steps.chunks(world_size as usize) {
            assert!(ranks.iter().all(|step| *step == ranks[0]));
        }
    }
}

#[tokio::test]
async fn a_step_says_everything_that_its_plan_says() {
    let mut replica = Replica::start(1, |_, _| {});
    let mut client = connected(&replica).await;
    let pool = PoolRequest {
        block_size: 4,
        max_rows: 8,
        max_step_tokens: 64,
        max_context: 256,
        num_blocks: None,
        memory_utilization: 0.9,
    };
    assert_eq!(client.configure(&pool).await, Ok(64));
    let plan_sent = StepPlan {
        id: StepId(1),
        finished: vec![],
        started: vec![RowStart {
            slot: Slot(2),
            sampling: Arc::new(Sampling {
                temperature: 0.5,
                top_k: 3,
                top_p: 0.25,
                min_p: 0.125,
                typical_p: 0.75,
                repetition_penalty: 1.5,
                frequency_penalty: -0.5,
                presence_penalty: 0.0625,
                logit_bias: vec![(7, -1.5), (9, 2.5)],
                seed: u64::MAX,
                num_top_logprobs: 2,
                min_new_tokens: 1,
            }),
            stop_tokens: Arc::from([5, 6]),
            num_generated: 4,
            history: vec![1, 2, 3, 0xffff_fffe],
            num_prompt_tokens: 3,
        }],
        block_tables: vec![BlockTableDelta {
            slot: Slot(2),
            start: 0,
            blocks: vec![BlockId(9), BlockId(11)],
        }],
        block_copies: vec![BlockCopy { source: BlockId(1), destination: BlockId(9) }],
        rows: vec![Row { slot: Slot(2), position: 3, input: RowInput::Tokens(vec![70, 71]), sample: true }],
    };
    client.send(&plan_sent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
    let output = client.receive().await.unwrap();
    assert_eq!((output.id, output.samples.len(), output.samples[0].top.len()), (StepId(1), 1, 2));
    assert_eq!(output.samples[0].token, output.samples[0].top[0].0);

    let seen = replica.seen.recv().await.unwrap();
    assert_eq!(seen.traceparent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let sampling = seen.started[0].sampling.clone().unwrap();
    let floats: Vec<f32> =
        sampling.bias_values.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    assert_eq!(floats, [-1.5, 2.5]);
    assert_eq!((sampling.top_k, sampling.top_p, sampling.min_p, sampling.typical_p), (3, 0.25, 0.125, 0.75),);
    assert_eq!(
        (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty),
        (1.5, -0.5, 0.0625)
    );
    let back = plan(&seen);
    let (started, sent) = (&back.started[0], &plan_sent.started[0]);
    assert_eq!((started.slot, started.num_generated), (sent.slot, sent.num_generated));
    assert_eq!((&started.history, started.num_prompt_tokens), (&sent.history, sent.num_prompt_tokens));
    assert_eq!(started.stop_tokens, sent.stop_tokens);
    assert_eq!(
        (back.block_tables, back.block_copies, back.rows),
        (plan_sent.block_tables, plan_sent.block_copies, plan_sent.rows)
    );
}

#[tokio::test]
async fn ranks_that_do_not_belong_together_are_refused() {
    type Edit = fn(&mut proto::DescribeResponse, &mut u64);
    let cases: [(&str, Edit); 5] = [
        ("fingerprint", |description, _| description.fingerprint += &description.rank.to_string()),
        ("rank", |description, _| description.rank = 0),
        ("world_size", |description, _| description.world_size = 1),
        ("dtype", |description, _| description.dtype += &description.rank.to_string()),
        ("vocab_size", |description, _| description.vocab_size += description.rank),
    ];
    for (expected, edit) in cases {
        let replica = Replica::start(2, edit);
        let mut client = replica.client();
        let error = loop {
            match client.connect().await.unwrap_err() {
                ShardError::Unreachable { .. } => tokio::time::sleep(Duration::from_millis(5)).await,
                error => break error,
            }
        };
        assert!(
            matches!(error, ShardError::Mismatch { what, .. } if what == expected),
            "{expected}: {error}"
        );
    }
}

#[tokio::test]
async fn a_rank_with_another_pool_is_refused() {
    let replica = Replica::start(2, |description, num_blocks| *num_blocks += u64::from(description.rank));
    let mut client = connected(&replica).await;
    let pool = PoolRequest {
        block_size: 4,
        max_rows: 8,
        max_step_tokens: 64,
        max_context: 256,
        num_blocks: None,
        memory_utilization: 0.9,
    };
    let error = client.configure(&pool).await.unwrap_err();
    assert!(matches!(error, ShardError::Mismatch { rank: 1, what: "num_blocks", .. }), "{error}");
}

#[tokio::test]
async fn a_rank_that_is_not_there_is_named() {
    let replica = Replica::start(1, |_, _| {});
    let sockets = vec![replica.socket(0), replica.socket(1)];
    let error = GrpcShard::new(sockets, GrpcOptions::default()).connect().await.unwrap_err();
    let ShardError::Unreachable { reason, .. } = error else { panic!("{error}") };
    assert!(reason.contains("No such file"), "{reason}");
}

#[tokio::test]
async fn a_rank_that_listens_and_says_nothing_times_out() {
    let replica = Replica::at(tempfile::tempdir().unwrap());
    let _listener = UnixListener::bind(replica.socket(0)).unwrap();
    let error = replica.client().connect().await.unwrap_err();
    assert!(matches!(error, ShardError::Timeout { rank: 0, call: "Describe", .. }), "{error}");
    // Nothing but its death helps, so whoever started it is asked for that.
    let (_engine, mut events) = start(replica.client(), EngineConfig::default());
    assert_eq!(events.recv().await, Some(EngineEvent::ShardStalled));
}

#[tokio::test]
async fn a_replica_that_dies_mid_stream_is_found_again() {
    for world_size in [1, 2] {
        let mut replica = Replica::start(world_size, |_, _| {});
        let (engine, mut events) = start(replica.client(), EngineConfig::default());
        assert!(matches!(events.recv().await, Some(EngineEvent::Ready(_))));
        // No end in sight: the fake ranks answer as fast as they are asked.
        let mut generation = engine.submit(request(0..10, 1000)).await.unwrap();
        read_tokens(&mut generation, 3).await;
        replica.killed.cancel();
        assert!(matches!(events.recv().await, Some(EngineEvent::ShardLost { .. })));
        let end = read(generation).await.end;
        assert!(matches!(end, Err(EngineError::ShardLost { .. })), "{end:?}");

        replica.serve(world_size, |_, num_blocks| *num_blocks = 32);
        let Some(EngineEvent::Ready(info)) = events.recv().await else { panic!("it is ready again") };
        assert_eq!(info.kv_tokens, 512);
        assert!(read(engine.submit(request(0..10, 20)).await.unwrap()).await.end.is_ok());
    }
}

#[tokio::test]
async fn one_rank_of_several_that_dies_fails_the_replica() {
    let replica = Replica::start(2, |_, _| {});
    let (engine, mut events) = start(replica.client(), EngineConfig::default());
    assert!(matches!(events.recv().await, Some(EngineEvent::Ready(_))));
    // Rank 0 waits for its partner, as in a collective, and never answers.
    replica.controls[0].stall();
    replica.controls[1].kill();
    let generation = engine.submit(request(0..10, 1000)).await.unwrap();
    let Some(EngineEvent::ShardLost { message }) = events.recv().await else { panic!("it was lost") };
    assert!(message.contains("rank 1"), "{message}");
    assert!(matches!(read(generation).await.end, Err(EngineError::ShardLost { .. })));
}

#[tokio::test]
async fn the_socket_need_not_exist_yet() {
    let mut replica = Replica::at(tempfile::tempdir().unwrap());
    let (engine, _events) = start(replica.client(), EngineConfig::default());
    tokio::time::sleep(Duration::from_millis(50)).await;
    replica.serve(1, |_, _| {});
    engine.ready().await;
    assert!(Path::new(&replica.socket(0)).exists());
}
