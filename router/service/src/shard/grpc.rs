//! The step protocol's client, and the only file of the router that sees its protobuf types.
//!
//! ```text
//!                    ┌► queue 0 ─► Execute stream ─► rank 0 ─► tokens ───────────┐
//! plan ─► encode once┼► queue 1 ─► Execute stream ─► rank 1 ─► acknowledgement ──┼► all of step N ─► output
//!                    └► …                                                        ┘
//! ```
//!
//! A step is serialised once; every rank gets the same bytes. The ranks fail as one: an answer counts when all have given it,
//! and the first rank to break, whichever it is, ends the wait for the others.

use std::{
    future::{Future, poll_fn},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use anaphora_core::{
    ids::StepId,
    plan::{RowInput, RowStart, Sample, StepOutput, StepPlan},
};
use anaphora_proto::shard as proto;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream as _, future::try_join_all};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tokio::{net::UnixStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};

use super::{Description, PoolRequest, Shard, ShardError};

const EXECUTE: &str = "/anaphora.shard.v1.Shard/Execute";

/// Deadlines and keep-alive of the connection to a rank.
#[derive(Clone, Copy, Debug)]
pub struct GrpcOptions {
    /// To connect, and to answer `Describe`.
    pub describe_timeout: Duration,
    /// To warm up and allocate.
    pub configure_timeout: Duration,
    /// HTTP/2 pings, which tell a stopped process from an idle one.
    pub keep_alive_interval: Duration,
    /// How long a ping may stay without an answer.
    pub keep_alive_timeout: Duration,
}

impl Default for GrpcOptions {
    fn default() -> Self {
        Self {
            describe_timeout: Duration::from_secs(30),
            configure_timeout: Duration::from_secs(900),
            keep_alive_interval: Duration::from_secs(30),
            keep_alive_timeout: Duration::from_secs(60),
        }
    }
}

/// The ranks of one replica, each behind a Unix socket.
#[derive(Debug)]
pub struct GrpcShard {
    sockets: Vec<PathBuf>,
    options: GrpcOptions,
    channels: Vec<Channel>,
    ranks: Vec<Rank>,
}

/// The `Execute` stream of a rank.
struct Rank {
    steps: mpsc::UnboundedSender<Bytes>,
    results: Results,
    /// Its answer to the step that the others have not all answered.
    answer: Option<proto::StepResult>,
}

/// A server may send the head of its answer with its first result only, so the stream opens while steps are being sent.
enum Results {
    Opening(Pin<Box<dyn Future<Output = Result<Streaming<proto::StepResult>, Status>> + Send>>),
    Open(Box<Streaming<proto::StepResult>>),
}

// === impl GrpcShard ===

impl GrpcShard {
    /// A client to the ranks behind `sockets`, in rank order; connects when it is told to.
    #[must_use]
    pub fn new(sockets: Vec<PathBuf>, options: GrpcOptions) -> Self {
        Self { sockets, options, channels: Vec::new(), ranks: Vec::new() }
    }

    async fn describe(
        options: GrpcOptions,
        rank: usize,
        socket: &Path,
    ) -> Result<(Channel, proto::DescribeResponse), ShardError> {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let limit = options.describe_timeout;
        let timed_out = |_| ShardError::Timeout { rank, call: "Describe", limit };
        // The address is a formality: the connector knows where to go.
        let endpoint = Endpoint::from_static("http://shard")
            .http2_keep_alive_interval(options.keep_alive_interval)
            .keep_alive_timeout(options.keep_alive_timeout)
            .keep_alive_while_idle(true);
        let channel = timeout(limit, endpoint.connect_with_connector(connector))
            .await
            .map_err(timed_out)?
            .map_err(|error| ShardError::Unreachable { rank, reason: innermost(&error) })?;
        let mut client = proto::shard_client::ShardClient::new(channel.clone());
        let response = timeout(limit, client.describe(proto::DescribeRequest {}))
            .await
            .map_err(timed_out)?
            .map_err(|status| failed(rank, "Describe", &status))?;
        Ok((channel, response.into_inner()))
    }

    async fn configure_rank(
        limit: Duration,
        rank: usize,
        channel: Channel,
        request: proto::ConfigureRequest,
    ) -> Result<u64, ShardError> {
        let mut client = proto::shard_client::ShardClient::new(channel);
        let response = timeout(limit, client.configure(request))
            .await
            .map_err(|_| ShardError::Timeout { rank, call: "Configure", limit })?
            .map_err(|status| failed(rank, "Configure", &status))?;
        Ok(response.into_inner().num_blocks)
    }

    /// All ranks' answers to one step, or the first failure of any.
    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<Result<proto::StepResult, ShardError>> {
        let mut all = true;
        for (rank, state) in self.ranks.iter_mut().enumerate() {
            if state.answer.is_none() {
                match state.results.poll_next(cx) {
                    Poll::Ready(Ok(answer)) => state.answer = Some(answer),
                    Poll::Ready(Err(status)) => return Poll::Ready(Err(failed(rank, "Execute", &status))),
                    Poll::Pending => all = false,
                }
            }
        }
        if !all || self.ranks.is_empty() {
            return Poll::Pending;
        }
        let mut answers = self.ranks.iter_mut().filter_map(|rank| rank.answer.take());
        let first = answers.next().expect("every rank has answered. This is a bug.");
        for (rank, other) in (1..).zip(answers) {
            if other.id != first.id {
                let reason = format!("it answered step {} when rank 0 answered {}", other.id, first.id);
                return Poll::Ready(Err(ShardError::Protocol { rank, reason }));
            }
        }
        Poll::Ready(Ok(first))
    }
}

impl Shard for GrpcShard {
    async fn connect(&mut self) -> Result<Description, ShardError> {
        self.ranks.clear();
        self.channels.clear();
        let options = self.options;
        let described =
            self.sockets.iter().enumerate().map(|(rank, socket)| Self::describe(options, rank, socket));
        let (channels, responses): (Vec<_>, Vec<_>) = try_join_all(described).await?.into_iter().unzip();
        let description = agree(responses)?;
        self.channels = channels;
        Ok(description)
    }

    async fn configure(&mut self, pool: &PoolRequest) -> Result<u32, ShardError> {
        self.ranks.clear();
        let request = proto::ConfigureRequest {
            block_size: pool.block_size,
            max_rows: pool.max_rows,
            max_step_tokens: pool.max_step_tokens,
            max_context: pool.max_context,
            num_blocks: pool.num_blocks.unwrap_or(0).into(),
            memory_utilization: pool.memory_utilization,
        };
        // All at once: the ranks wait for each other in it.
        let limit = self.options.configure_timeout;
        let channels = self.channels.iter().cloned().enumerate();
        let configured = channels.map(|(rank, channel)| Self::configure_rank(limit, rank, channel, request));
        let num_blocks = try_join_all(configured).await?;
        for (rank, other) in num_blocks.iter().enumerate() {
            expect_equal(rank, "num_blocks", &num_blocks[0], other)?;
        }
        let num_blocks = u32::try_from(num_blocks[0]).map_err(|_| ShardError::Protocol {
            rank: 0,
            reason: format!("{} blocks are too many", num_blocks[0]),
        })?;
        self.ranks = self.channels.iter().cloned().map(Rank::open).collect();
        Ok(num_blocks)
    }

    fn send(&mut self, plan: &StepPlan, traceparent: &str) -> Result<(), ShardError> {
        let bytes = Bytes::from(step(plan, traceparent).encode_to_vec());
        for (rank, state) in self.ranks.iter().enumerate() {
            state.steps.send(bytes.clone()).map_err(|_| ShardError::Failed {
                rank,
                call: "Execute",
                reason: "the stream has ended".to_owned(),
            })?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<StepOutput, ShardError> {
        let result = poll_fn(|cx| self.poll_answers(cx)).await?;
        output(result).map_err(|reason| ShardError::Protocol { rank: 0, reason })
    }
}

// === impl Rank, Results ===

impl Rank {
    fn open(channel: Channel) -> Self {
        // Bounded by the number of steps in flight.
        let (steps, queue) = mpsc::unbounded_channel();
        let opening = async move {
            let mut grpc = tonic::client::Grpc::new(channel);
            grpc.ready().await.map_err(|error| Status::unavailable(innermost(&error)))?;
            let request = Request::new(UnboundedReceiverStream::new(queue));
            let path = http::uri::PathAndQuery::from_static(EXECUTE);
            Ok(grpc.streaming(request, path, StepCodec).await?.into_inner())
        };
        Self { steps, results: Results::Opening(Box::pin(opening)), answer: None }
    }
}

impl std::fmt::Debug for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rank").field("answer", &self.answer).finish_non_exhaustive()
    }
}

impl Results {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<proto::StepResult, Status>> {
        if let Self::Opening(opening) = self {
            *self = Self::Open(Box::new(ready!(opening.as_mut().poll(cx))?));
        }
        let Self::Open(stream) = self else { unreachable!("it was just opened") };
        let result = ready!(Pin::new(stream).poll_next(cx));
        Poll::Ready(result.unwrap_or_else(|| Err(Status::unavailable("the stream has ended"))))
    }
}

/// Sends bytes as they are, so that a step is serialised once for all ranks.
struct StepCodec;

impl Codec for StepCodec {
    type Encode = Bytes;
    type Decode = proto::StepResult;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for StepCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for StepCodec {
    type Item = proto::StepResult;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<proto::StepResult>, Status> {
        let result = proto::StepResult::decode(buffer);
        result.map(Some).map_err(|error| Status::internal(format!("not a StepResult: {error}")))
    }
}

// === errors and agreement ===

fn failed(rank: usize, call: &'static str, status: &Status) -> ShardError {
    let reason = match std::error::Error::source(status) {
        // Not the rank's words but the transport's.
        Some(source) => format!("the connection broke: {}", innermost(source)),
        None => format!("{:?}: {}", status.code(), status.message()),
    };
    ShardError::Failed { rank, call, reason }
}

/// The cause that a person can act on: transports wrap it several times.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn expect_equal<T: PartialEq + ToString>(
    rank: usize,
    what: &'static str,
    expected: &T,
    found: &T,
) -> Result<(), ShardError> {
    if expected == found {
        return Ok(());
    }
    Err(ShardError::Mismatch { rank, what, expected: expected.to_string(), found: found.to_string() })
}

/// One description of all ranks, if they are the ranks of one replica.
fn agree(responses: Vec<proto::DescribeResponse>) -> Result<Description, ShardError> {
    let world_size = u32::try_from(responses.len()).unwrap_or(u32::MAX);
    let max_context = responses.iter().map(|response| response.max_context).min().unwrap_or(0);
    for (rank, response) in responses.iter().enumerate() {
        let first = &responses[0];
        expect_equal(rank, "rank", &u32::try_from(rank).unwrap_or(u32::MAX), &response.rank)?;
        expect_equal(rank, "world_size", &world_size, &response.world_size)?;
        expect_equal(rank, "fingerprint", &first.fingerprint, &response.fingerprint)?;
        expect_equal(rank, "dtype", &first.dtype, &response.dtype)?;
        expect_equal(rank, "vocab_size", &first.vocab_size, &response.vocab_size)?;
    }
    let Some(first) = responses.into_iter().next() else {
        return Err(ShardError::Unreachable { rank: 0, reason: "there is no rank".to_owned() });
    };
    Ok(Description {
        fingerprint: first.fingerprint,
        architecture: first.architecture,
        dtype: first.dtype,
        device: first.device,
        world_size,
        vocab_size: first.vocab_size,
        max_context,
    })
}

// === plans to messages, messages to outputs ===

fn pack(words: impl IntoIterator<Item = u32>) -> Bytes {
    let words = words.into_iter();
    let mut bytes = BytesMut::with_capacity(4 * words.size_hint().0);
    words.for_each(|word| bytes.put_u32_le(word));
    bytes.freeze()
}

fn unpack(bytes: &Bytes) -> Result<impl ExactSizeIterator<Item = [u8; 4]>, String> {
    let (words, rest) = bytes.as_chunks::<4>();
    if rest.is_empty() {
        Ok(words.iter().copied())
    } else {
        Err(format!("an array of {} bytes", bytes.len()))
    }
}

fn step(plan: &StepPlan, traceparent: &str) -> proto::Step {
    let table = |delta: &anaphora_core::plan::BlockTableDelta| proto::BlockTableDelta {
        slot: delta.slot.0,
        start: delta.start,
        blocks: pack(delta.blocks.iter().map(|block| block.0)),
    };
    let flags = |row: &anaphora_core::plan::Row| {
        u8::from(row.sample) | u8::from(matches!(row.input, RowInput::Tokens(_))) << 1
    };
    let tokens = plan.rows.iter().filter_map(|row| match &row.input {
        RowInput::Tokens(tokens) => Some(tokens.as_slice()),
        RowInput::LastSampled => None,
    });
    proto::Step {
        id: plan.id.0,
        finished: pack(plan.finished.iter().map(|slot| slot.0)),
        started: plan.started.iter().map(row_start).collect(),
        block_tables: plan.block_tables.iter().map(table).collect(),
        block_copies: pack(plan.block_copies.iter().flat_map(|copy| [copy.source.0, copy.destination.0])),
        slots: pack(plan.rows.iter().map(|row| row.slot.0)),
        positions: pack(plan.rows.iter().map(|row| row.position)),
        num_tokens: pack(plan.rows.iter().map(|row| row.input.num_tokens() as u32)),
        flags: plan.rows.iter().map(flags).collect(),
        tokens: pack(tokens.flatten().copied()),
        traceparent: traceparent.to_owned(),
    }
}

fn row_start(start: &RowStart) -> proto::RowStart {
    let sampling = &start.sampling;
    let mut bias_values = BytesMut::with_capacity(4 * sampling.logit_bias.len());
    sampling.logit_bias.iter().for_each(|(_, bias)| bias_values.put_f32_le(*bias));
    proto::RowStart {
        slot: start.slot.0,
        sampling: Some(proto::Sampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            typical_p: sampling.typical_p,
            repetition_penalty: sampling.repetition_penalty,
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            bias_tokens: pack(sampling.logit_bias.iter().map(|(token, _)| *token)),
            bias_values: bias_values.freeze(),
            seed: sampling.seed,
            num_top_logprobs: sampling.num_top_logprobs,
            min_new_tokens: sampling.min_new_tokens,
            stop_tokens: if sampling.min_new_tokens > 0 {
                pack(start.stop_tokens.iter().copied())
            } else {
                Bytes::new()
            },
        }),
        num_generated: start.num_generated,
        history: pack(start.history.iter().copied()),
        num_prompt_tokens: start.num_prompt_tokens,
    }
}

fn output(result: proto::StepResult) -> Result<StepOutput, String> {
    let tokens = unpack(&result.tokens)?;
    let logprobs = unpack(&result.logprobs)?;
    if tokens.len() != logprobs.len() {
        return Err(format!("{} tokens with {} log-probabilities", tokens.len(), logprobs.len()));
    }
    let sample = |(token, logprob)| Sample {
        token: u32::from_le_bytes(token),
        logprob: f32::from_le_bytes(logprob),
        top: Vec::new(),
    };
    let mut samples: Vec<Sample> = tokens.zip(logprobs).map(sample).collect();
    for top in &result.top {
        let sample =
            samples.get_mut(top.index as usize).ok_or_else(|| format!("no sampling row {}", top.index))?;
        let pairs = unpack(&top.tokens)?.zip(unpack(&top.logprobs)?);
        sample.top =
            pairs.map(|(token, logprob)| (u32::from_le_bytes(token), f32::from_le_bytes(logprob))).collect();
    }
    Ok(StepOutput { id: StepId(result.id), samples, duration_us: result.duration_us })
}
