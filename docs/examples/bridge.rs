// The flat bridge from Rust.
//
//     rustc bridge.rs -C link-arg="$(anetorch-config --library)" \
//         -C link-arg=-Wl,-rpath,"$(anetorch-config --prefix)"
use std::ffi::{c_char, c_int, c_void, CStr};

extern "C" {
    fn ane_bridge_init() -> c_int;
    fn ane_bridge_compile(
        text: *const c_char, len: usize, weights: *const u8, weight_len: usize,
        n_inputs: c_int, input_sizes: *const usize, n_outputs: c_int,
        output_sizes: *const usize,
    ) -> *mut c_void;
    fn ane_bridge_write_input(kernel: *mut c_void, idx: c_int, data: *const c_void, bytes: usize);
    fn ane_bridge_eval(kernel: *mut c_void) -> bool;
    fn ane_bridge_read_output(kernel: *mut c_void, idx: c_int, data: *mut c_void, bytes: usize);
    fn ane_bridge_free(kernel: *mut c_void);
    fn ane_bridge_last_error() -> *const c_char;
}

const TEXT: &str = r#"program(1.3)
{
    func main<ios18>(tensor<fp32, [4]> x) {
        tensor<fp32, [4]> y = square(x = x)[name = string("y")];
    } -> (y);
}
"#;

fn main() {
    let (x, mut y, bytes) = ([1f32, 2.0, 3.0, 4.0], [0f32; 4], 16usize);
    unsafe {
        let why = || CStr::from_ptr(ane_bridge_last_error()).to_string_lossy().into_owned();
        if ane_bridge_init() != 0 {
            panic!("init: {}", why());
        }
        let kernel = ane_bridge_compile(
            TEXT.as_ptr().cast(), TEXT.len(), std::ptr::null(), 0, 1, &bytes, 1, &bytes,
        );
        if kernel.is_null() {
            panic!("compile: {}", why());
        }
        ane_bridge_write_input(kernel, 0, x.as_ptr().cast(), bytes);
        if !ane_bridge_eval(kernel) {
            panic!("eval: {}", why());
        }
        ane_bridge_read_output(kernel, 0, y.as_mut_ptr().cast(), bytes);
        ane_bridge_free(kernel);
    }
    println!("{y:?}");
}
