//! A backend that computes as Flex does, operation by operation, and counts what it is asked for:
//! what a GPU would be asked for without fusion.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use burn::backend::Flex;
use burn::backend::flex::FlexDevice;
use burn::backend::ir::{BackendIr, BaseOperationIr, OperationIr, TensorId, TensorIr};
use burn::backend::router::{
    BackendRouter, MultiBackendBridge, RouterTensor, Runner, RunnerChannel, RunnerClient,
};
use burn::tensor::backend::{DTypeUsageSet, ExecutionError};
use burn::tensor::{DType, Shape, TensorData};

/// The backend.
pub(crate) type Counting = BackendRouter<Channel>;

/// What has been asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// Operations that move or compute numbers, by name; those that only look at them differently
    /// are left out.
    kernels: BTreeMap<String, usize>,
    /// Bytes that kernels write which only move numbers.
    moved: usize,
    /// Bytes of each copy to the device.
    uploads: Vec<usize>,
    /// Bytes of each copy to the host.
    reads: Vec<usize>,
}

impl Counts {
    pub(crate) fn kernels(&self) -> usize {
        self.kernels.values().sum()
    }

    /// Kernels with this name.
    pub(crate) fn kernels_of(&self, name: &str) -> usize {
        self.kernels.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn moved_bytes(&self) -> usize {
        self.moved
    }

    pub(crate) fn uploads(&self) -> usize {
        self.uploads.len()
    }

    pub(crate) fn uploaded_bytes(&self) -> usize {
        self.uploads.iter().sum()
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.len()
    }

    /// What has been asked for since an earlier count.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let kernels = self.kernels.iter();
        let kernels = kernels.map(|(name, count)| (name.clone(), count - earlier.kernels_of(name)));
        Self {
            kernels: kernels.filter(|(_, count)| *count > 0).collect(),
            moved: self.moved - earlier.moved,
            uploads: self.uploads[earlier.uploads()..].to_vec(),
            reads: self.reads[earlier.reads()..].to_vec(),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernels,
            moved,
            uploads,
            reads,
        } = self;
        let count = self.kernels();
        write!(
            f,
            "{count} kernels {kernels:?}, {moved} bytes moved, uploads {uploads:?}, reads {reads:?}"
        )
    }
}

/// The counts of a thread, and the tensors on it that are views of others in another order.
#[derive(Default)]
struct Counter {
    counts: Counts,
    strided: HashSet<TensorId>,
}

thread_local! {
    static COUNTER: RefCell<Counter> = RefCell::default();
}

/// What this thread has asked for so far.
pub(crate) fn so_far() -> Counts {
    COUNTER.with_borrow(|counter| counter.counts.clone())
}

/// What a function asks for.
pub(crate) fn counted<T>(run: impl FnOnce() -> T) -> (T, Counts) {
    let before = so_far();
    let value = run();
    (value, so_far().since(&before))
}

fn bytes(shape: &Shape, dtype: DType) -> usize {
    shape.num_elements() * dtype.size()
}

impl Counter {
    fn count(&mut self, operation: &OperationIr) {
        let base = match operation {
            OperationIr::BaseFloat(base)
            | OperationIr::BaseInt(base)
            | OperationIr::BaseBool(base) => base,
            OperationIr::Drop(tensor) => {
                self.strided.remove(&tensor.id);
                return;
            }
            OperationIr::Init(_) => return,
            _ => return self.add(operation),
        };
        match base {
            BaseOperationIr::SwapDims(it) => {
                let (from, to) = (it.dim1.min(it.dim2), it.dim1.max(it.dim2));
                let between = (from..=to).filter(|axis| it.input.shape[*axis] > 1);
                self.view(&it.input, &it.out, between.count() > 1);
            }
            BaseOperationIr::Permute(it) => {
                let wide = it.axes.iter().filter(|axis| it.input.shape[**axis] > 1);
                self.view(&it.input, &it.out, !wide.is_sorted());
            }
            BaseOperationIr::Expand(it) => {
                let repeats = it.input.shape.num_elements() < it.out.shape.num_elements();
                self.view(&it.input, &it.out, repeats);
            }
            // In the order of its elements, unless these are not adjacent.
            BaseOperationIr::Reshape(it) if !self.strided.contains(&it.input.id) => {}
            BaseOperationIr::Cast(it) if it.input.dtype == it.out.dtype => {}
            BaseOperationIr::SliceAssign(it) => {
                self.counts.moved += bytes(&it.value.shape, it.value.dtype);
                self.add(operation);
            }
            BaseOperationIr::Reshape(_)
            | BaseOperationIr::Slice(_)
            | BaseOperationIr::Select(_)
            | BaseOperationIr::Gather(_)
            | BaseOperationIr::SelectAssign(_)
            | BaseOperationIr::Scatter(_)
            | BaseOperationIr::Flip(_)
            | BaseOperationIr::RepeatDim(_)
            | BaseOperationIr::Cat(_) => {
                let written = operation.outputs().map(|it| bytes(&it.shape, it.dtype));
                self.counts.moved += written.sum::<usize>();
                self.add(operation);
            }
            _ => self.add(operation),
        }
    }

    fn view(&mut self, input: &TensorIr, out: &TensorIr, reorders: bool) {
        if reorders || self.strided.contains(&input.id) {
            self.strided.insert(out.id);
        }
    }

    fn add(&mut self, operation: &OperationIr) {
        // `BaseFloat(Reshape(ShapeOpIr { …`
        let text = format!("{operation:?}");
        let path: Vec<&str> = text
            .split(" {")
            .next()
            .unwrap_or(&text)
            .split('(')
            .collect();
        let name = path.iter().rev().nth(1).copied().unwrap_or(path[0]);
        let name = name.rsplit(", ").next().unwrap_or(name);
        // With a bias, two.
        let count = match name {
            "Linear" => operation.inputs().count() - 1,
            _ => 1,
        };
        *self.counts.kernels.entry(name.to_owned()).or_default() += count;
    }
}

/// Passes operations on to Flex.
#[derive(Clone)]
pub(crate) struct Client {
    flex: Runner<Flex>,
}

impl RunnerClient for Client {
    type Device = FlexDevice;

    fn register_op(&self, operation: OperationIr) {
        COUNTER.with_borrow_mut(|counter| counter.count(&operation));
        self.flex.register_op(operation);
    }

    fn read_tensor_async(
        &self,
        tensor: TensorIr,
    ) -> Pin<Box<dyn Future<Output = Result<TensorData, ExecutionError>> + Send>> {
        let read = bytes(&tensor.shape, tensor.dtype);
        COUNTER.with_borrow_mut(|counter| counter.counts.reads.push(read));
        self.flex.read_tensor_async(tensor)
    }

    fn sync(&self) -> Result<(), ExecutionError> {
        self.flex.sync()
    }

    fn create_empty_handle(&self) -> TensorId {
        self.flex.create_empty_handle()
    }

    fn register_tensor_data(&self, data: TensorData) -> RouterTensor<Self> {
        let upload = bytes(&data.shape, data.dtype);
        COUNTER.with_borrow_mut(|counter| counter.counts.uploads.push(upload));
        let TensorIr {
            id, shape, dtype, ..
        } = self.flex.register_tensor_data_desc(data);
        RouterTensor::new(id, shape, dtype, self.clone())
    }

    fn device(&self) -> FlexDevice {
        self.flex.device()
    }

    fn seed(&self, seed: u64) {
        self.flex.seed(seed);
    }

    fn dtype_usage(&self, dtype: DType) -> DTypeUsageSet {
        self.flex.dtype_usage(dtype)
    }
}

/// The one device.
#[derive(Clone)]
pub(crate) struct Channel;

type Handle = <Flex as BackendIr>::Handle;

impl RunnerChannel for Channel {
    type Device = FlexDevice;
    type Bridge = Bridge;
    type Client = Client;
    type FloatElem = f32;
    type IntElem = i32;
    type BoolElem = bool;

    fn name(_device: &FlexDevice) -> String {
        "counting".to_owned()
    }

    fn init_client(device: &FlexDevice) -> Client {
        Client {
            flex: Runner::new(*device),
        }
    }

    fn get_tensor_handle(tensor: &TensorIr, client: &Client) -> Handle {
        client.flex.get_tensor_handle(tensor)
    }

    fn register_tensor(
        client: &Client,
        handle: Handle,
        shape: Shape,
        dtype: DType,
    ) -> RouterTensor<Client> {
        let own = client.clone();
        client.flex.register_tensor(handle, shape, dtype, own)
    }
}

/// From the device to itself.
pub(crate) struct Bridge;

impl MultiBackendBridge for Bridge {
    type TensorHandle = Handle;
    type Device = FlexDevice;

    fn change_backend_float(tensor: Handle, _shape: Shape, _device: &FlexDevice) -> Handle {
        tensor
    }

    fn change_backend_int(tensor: Handle, _shape: Shape, _device: &FlexDevice) -> Handle {
        tensor
    }

    fn change_backend_bool(tensor: Handle, _shape: Shape, _device: &FlexDevice) -> Handle {
        tensor
    }
}
