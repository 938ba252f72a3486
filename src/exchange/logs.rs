//! Log tails: a member asks the process that runs a replica for its log. An agent in
//! this process is asked directly; a remote agent keeps a stream open, over which
//! orders go out and pieces come back, a bounded number ahead of the reader.

use super::message::{Error, LogQuery, NodeStart};
use super::wire;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use nf_core::id::NodeName;
use nf_proto::internal as pb;
use pb::log_order::What;
use pb::log_piece::Piece;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Logs that one agent is asked for at a time.
const ORDERS: usize = 64;
/// Pieces that an agent may send ahead of the reader.
const AHEAD: usize = 16;
/// Bytes in one piece.
const PIECE: usize = 32 << 10;
/// What a reader is told whose log ends without a word of its end.
const BROKEN: &str = "the way to the agent broke off; the replica may live on";

/// Reads the log of a replica that runs in this process.
pub type LogSource = Arc<dyn Fn(&LogQuery) -> BoxStream<'static, io::Result<Bytes>> + Send + Sync>;
/// A log on its way to a reader.
pub type LogStream = BoxStream<'static, Result<Bytes, Error>>;

type Reader = Arc<dyn Fn(LogQuery) -> LogStream + Send + Sync>;

/// Who can be asked for the logs of which node.
#[derive(Clone, Default)]
pub struct Sources {
    by_node: Arc<Mutex<BTreeMap<NodeName, (u64, Reader)>>>,
    next: Arc<AtomicU64>,
}

/// Ends when dropped.
pub struct Attached {
    sources: Sources,
    id: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.sources.lock().retain(|_, (id, _)| *id != self.id);
    }
}

impl Sources {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeName, (u64, Reader)>> {
        self.by_node.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn attach(&self, nodes: impl IntoIterator<Item = NodeName>, reader: Reader) -> Attached {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().extend(nodes.into_iter().map(|node| (node, (id, reader.clone()))));
        Attached { sources: self.clone(), id }
    }

    /// An agent in this process answers for `nodes`, until the handle is dropped.
    pub fn attach_local(&self, nodes: impl IntoIterator<Item = NodeName>, source: LogSource) -> Attached {
        let reader = move |query: LogQuery| -> LogStream {
            let failed = |e: io::Error| match e.kind() {
                io::ErrorKind::NotFound => Error::not_found(e.to_string()),
                _ => Error::Unavailable(e.to_string()),
            };
            source(&query).map(move |piece| piece.map_err(failed)).boxed()
        };
        self.attach(nodes, Arc::new(reader))
    }

    /// The log, when an agent of that node is connected to this member.
    pub fn read(&self, query: &LogQuery) -> Option<LogStream> {
        let reader = self.lock().get(&query.node).map(|(_, reader)| reader.clone())?;
        Some(reader(query.clone()))
    }

    /// Serves one remote agent's stream: returns the orders to send it, and a task
    /// that sorts what comes back, which ends with the stream.
    pub fn serve_agent<S>(
        &self,
        nodes: Vec<NodeStart>,
        mut pieces: S,
    ) -> (mpsc::Receiver<pb::LogOrder>, impl Future<Output = ()> + Send + use<S>)
    where
        S: Stream<Item = Result<pb::LogPiece, tonic::Status>> + Send + Unpin + 'static,
    {
        let (orders, to_agent) = mpsc::channel(ORDERS);
        let desk = Arc::new(Desk { orders, open: Mutex::new(Some(BTreeMap::new())), next: AtomicU64::new(1) });
        let attached = {
            let desk = desk.clone();
            self.attach(nodes.into_iter().map(|n| n.node), Arc::new(move |query| desk.clone().order(&query)))
        };
        let sorting = async move {
            let _attached = attached;
            while let Some(Ok(piece)) = pieces.next().await {
                desk.sort(piece);
            }
            // Whoever still reads sees no end, and takes it for none.
            desk.open().take();
        };
        (to_agent, sorting)
    }
}

/// What comes to the reader of one log.
enum Word {
    Data(Bytes),
    /// The last word. A log without it broke off.
    End(Option<Error>),
}

/// By order.
type Readers = BTreeMap<u64, mpsc::Sender<Word>>;

/// A member's side of one agent's log stream.
struct Desk {
    orders: mpsc::Sender<pb::LogOrder>,
    /// None once the agent has gone.
    open: Mutex<Option<Readers>>,
    next: AtomicU64,
}

impl Desk {
    fn open(&self) -> std::sync::MutexGuard<'_, Option<Readers>> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn order(self: Arc<Self>, query: &LogQuery) -> LogStream {
        let order = self.next.fetch_add(1, Ordering::Relaxed);
        // One more than the agent may send ahead, for the word that ends the log.
        let (to_reader, words) = mpsc::channel(AHEAD + 1);
        match &mut *self.open() {
            None => return once_failed(BROKEN),
            Some(open) if open.len() >= ORDERS => {
                return once_failed("too many logs of this agent are being read; try again later");
            }
            Some(open) => drop(open.insert(order, to_reader)),
        }
        let what = Some(What::Read(wire::put_query("", query)));
        let reading = Reading { desk: self.clone(), order, words };
        if self.orders.try_send(pb::LogOrder { order, what }).is_err() {
            return once_failed("the agent does not take orders now; try again later");
        }
        futures::stream::unfold(Some(reading), |reading| async move {
            let mut reading = reading?;
            match reading.words.recv().await {
                Some(Word::Data(bytes)) => {
                    let more = pb::LogOrder { order: reading.order, what: Some(What::More(1)) };
                    // Without credit the agent would only pause; it is gone when this fails.
                    let _ = reading.desk.orders.send(more).await;
                    Some((Ok(bytes), Some(reading)))
                }
                Some(Word::End(error)) => error.map(|error| (Err(error), None)),
                None => Some((Err(Error::Unavailable(BROKEN.to_owned())), None)),
            }
        })
        .boxed()
    }

    /// Hands a piece to its reader. Pieces beyond the credit break that log off, not the others.
    fn sort(&self, piece: pb::LogPiece) {
        let mut open = self.open();
        let Some(open) = &mut *open else { return };
        match piece.piece {
            Some(Piece::Data(data)) => {
                let to = open.get(&data.order);
                if to.is_some_and(|to| to.try_send(Word::Data(data.data)).is_err()) {
                    open.remove(&data.order);
                }
            }
            Some(Piece::End(end)) => {
                if let Some(to) = open.remove(&end.order) {
                    let error = (!end.error.is_empty()).then(|| Error::not_found(end.error));
                    // A reader that has gone does not need to know.
                    let _ = to.try_send(Word::End(error));
                }
            }
            Some(Piece::Hello(_)) | None => {}
        }
    }
}

/// A reader's place; leaving it cancels the order.
struct Reading {
    desk: Arc<Desk>,
    order: u64,
    words: mpsc::Receiver<Word>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let left = self.desk.open().as_mut().is_some_and(|open| open.remove(&self.order).is_some());
        if left {
            let cancel = pb::LogOrder { order: self.order, what: Some(What::Cancel(true)) };
            // When it can't be told, the agent runs out of credit and stops there.
            let _ = self.desk.orders.try_send(cancel);
        }
    }
}

fn once_failed(text: &str) -> LogStream {
    let error = Error::Unavailable(text.to_owned());
    futures::stream::once(async move { Err(error) }).boxed()
}

/// The agent's side: answers orders from `source` until the stream of orders ends.
pub async fn answer_orders<S>(mut orders: S, pieces: mpsc::Sender<pb::LogPiece>, source: LogSource)
where
    S: Stream<Item = Result<pb::LogOrder, tonic::Status>> + Unpin,
{
    let mut credits: BTreeMap<u64, (Arc<Semaphore>, tokio::task::AbortHandle)> = BTreeMap::new();
    let mut readers: JoinSet<u64> = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.next() => order,
            Some(done) = readers.join_next(), if !readers.is_empty() => {
                // A cancelled reader was already taken off the list.
                if let Ok(order) = done {
                    credits.remove(&order);
                }
                continue;
            }
        };
        let Some(Ok(order)) = order else { return };
        match order.what {
            Some(What::Read(query)) if credits.len() < ORDERS => {
                let credit = Arc::new(Semaphore::new(AHEAD));
                let task = read_for(order.order, query, source.clone(), pieces.clone(), credit.clone());
                let handle = readers.spawn(task);
                credits.insert(order.order, (credit, handle));
            }
            Some(What::Read(_)) => {
                let end = pb::LogEnd { order: order.order, error: "too many logs are being read".into() };
                if pieces.send(pb::LogPiece { piece: Some(Piece::End(end)) }).await.is_err() {
                    return;
                }
            }
            Some(What::More(more)) => {
                if let Some((credit, _)) = credits.get(&order.order) {
                    credit.add_permits((more as usize).min(AHEAD.saturating_sub(credit.available_permits())));
                }
            }
            Some(What::Cancel(_)) => {
                if let Some((_, handle)) = credits.remove(&order.order) {
                    handle.abort();
                }
            }
            None => {}
        }
    }
}

async fn read_for(
    order: u64,
    query: pb::ReadLogsRequest,
    source: LogSource,
    pieces: mpsc::Sender<pb::LogPiece>,
    credit: Arc<Semaphore>,
) -> u64 {
    let mut error = String::new();
    match wire::query(&query) {
        Err(refused) => error = refused.to_string(),
        Ok(query) => {
            let mut log = source(&query);
            'log: while let Some(piece) = log.next().await {
                let mut bytes = match piece {
                    Ok(bytes) => bytes,
                    Err(failed) => {
                        error = failed.to_string();
                        break;
                    }
                };
                while !bytes.is_empty() {
                    let data = bytes.split_to(bytes.len().min(PIECE));
                    let Ok(permit) = credit.acquire().await else { break 'log };
                    permit.forget();
                    let data = pb::LogPiece { piece: Some(Piece::Data(pb::LogData { order, data })) };
                    if pieces.send(data).await.is_err() {
                        return order;
                    }
                }
            }
        }
    }
    let end = pb::LogPiece { piece: Some(Piece::End(pb::LogEnd { order, error })) };
    // Nobody waits for it when the stream is gone.
    let _ = pieces.send(end).await;
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use nf_core::id::{Incarnation, JobNo, RequestId};
    use nf_core::reconcile::ReplicaId;
    use tokio_stream::wrappers::ReceiverStream;

    /// An agent's end of a log that somebody reads.
    struct Agent {
        pieces: mpsc::Sender<Result<pb::LogPiece, tonic::Status>>,
        orders: mpsc::Receiver<pb::LogOrder>,
    }

    impl Agent {
        fn new(sources: &Sources) -> Self {
            let (pieces, come) = mpsc::channel(64);
            let start = NodeStart { node: NodeName::new("w1").unwrap(), incarnation: Incarnation(1) };
            let (orders, sorting) = sources.serve_agent(vec![start], ReceiverStream::new(come));
            tokio::spawn(sorting);
            Self { pieces, orders }
        }

        async fn asked(&mut self) -> u64 {
            self.orders.recv().await.unwrap().order
        }

        async fn say(&self, piece: Piece) {
            self.pieces.send(Ok(pb::LogPiece { piece: Some(piece) })).await.unwrap();
        }

        async fn data(&self, order: u64, text: &str) {
            self.say(Piece::Data(pb::LogData { order, data: text.to_owned().into() })).await;
        }
    }

    fn query() -> LogQuery {
        let id = ReplicaId { job: JobNo(1), replica: 0 };
        let (node, request) = (NodeName::new("w1").unwrap(), RequestId::new("r1").unwrap());
        LogQuery { node, request, id, follow: true, tail: 10, life: false }
    }

    fn broken<T>(word: &Option<Result<T, Error>>) -> bool {
        matches!(word, Some(Err(Error::Unavailable(_))))
    }

    #[tokio::test]
    async fn a_log_whose_agent_goes_breaks_off_and_one_that_ended_does_not() {
        let sources = Sources::default();
        let mut agent = Agent::new(&sources);
        let (mut ended, mut broke) = (sources.read(&query()).unwrap(), sources.read(&query()).unwrap());
        let (first, second) = (agent.asked().await, agent.asked().await);
        for order in [first, second] {
            agent.data(order, "a line\n").await;
        }
        agent.say(Piece::End(pb::LogEnd { order: first, error: String::new() })).await;
        assert_eq!(ended.next().await, Some(Ok("a line\n".into())));
        assert_eq!(ended.next().await, None);
        drop(agent);
        assert_eq!(broke.next().await, Some(Ok("a line\n".into())));
        let word = broke.next().await;
        assert!(broken(&word), "{word:?}");
        assert_eq!(broke.next().await, None);
    }

    #[tokio::test]
    async fn who_is_sent_more_than_it_may_is_told_that_something_is_missing() {
        let sources = Sources::default();
        let mut agent = Agent::new(&sources);
        let (mut log, mut other) = (sources.read(&query()).unwrap(), sources.read(&query()).unwrap());
        let (order, next) = (agent.asked().await, agent.asked().await);
        for n in 0..AHEAD + 5 {
            agent.data(order, &n.to_string()).await;
        }
        agent.data(next, "fine").await;
        agent.say(Piece::End(pb::LogEnd { order, error: String::new() })).await;
        assert_eq!(other.next().await, Some(Ok("fine".into())));
        for n in 0..=AHEAD {
            assert_eq!(log.next().await, Some(Ok(n.to_string().into())));
        }
        let word = log.next().await;
        assert!(broken(&word), "{word:?}");
    }
}
