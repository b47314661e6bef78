/* Compiles a MIL text, runs it and prints the result.
 *
 *     cc run_mil.c $(anetorch-config --cflags --libs) -o run_mil && ./run_mil
 *
 * The first argument names the device: cpu (the default) or ane. */
#include <ane.h>

#include <stdio.h>
#include <string.h>

static const char text[] =
    "program(1.3)\n"
    "{\n"
    "    func main<ios18>(tensor<fp32, [2, 3]> x, tensor<fp32, [3, 2]> w) {\n"
    "        bool no = const()[name = string(\"no\"), val = bool(false)];\n"
    "        tensor<fp32, [2, 2]> p = matmul(x = x, y = w, transpose_x = no, "
    "transpose_y = no)[name = string(\"p\")];\n"
    "        tensor<fp32, [2, 2]> y = relu(x = p)[name = string(\"y\")];\n"
    "    } -> (y);\n"
    "}\n";

static int failed(const char *what, const ane_error *err) {
    if (err->line)
        fprintf(stderr, "%s: line %d, column %d: %s\n", what, err->line, err->column,
                err->message);
    else
        fprintf(stderr, "%s: %s\n", what, err->message);
    return 1;
}

/* A row-major tensor with memory of its own, as a port of the kernel wants it. */
static ane_status make(const ane_port *port, ane_tensor *t, ane_error *err) {
    ane_surface *s = NULL;
    size_t bytes;
    ane_status st = ane_shape_size(port->dtype, port->rank, port->dims, &bytes, err);
    if (!st) st = ane_surface_create(ane_memory_default(), bytes, port->name, &s, err);
    if (!st) st = ane_tensor_init(t, s, 0, port->dtype, port->rank, port->dims, err);
    return st;
}

int main(int argc, char **argv) {
    static const float x[] = {1, 2, 3, 4, 5, 6}, w[] = {1, -1, 0, 1, 1, -1};
    ane_error err = {0};
    ane_program *program = NULL;
    ane_kernel *kernel = NULL;
    ane_request *request = NULL;
    ane_tensor in[2] = {0}, out[1] = {0};
    ane_parse_options parse = {.size = sizeof parse, .filename = "run_mil.mil"};
    ane_compile_options options = {.size = sizeof options, .device = argc > 1 ? argv[1] : NULL};
    int code = 0;

    if (ane_program_parse(text, strlen(text), &parse, &program, &err))
        code = failed("parse", &err);
    else if (ane_kernel_compile(program, &options, &kernel, &err))
        code = failed("compile", &err);
    for (size_t i = 0; !code && i < 2; i++)
        if (make(ane_kernel_input(kernel, i), &in[i], &err)) code = failed("input", &err);
    if (!code && make(ane_kernel_output(kernel, 0), &out[0], &err))
        code = failed("output", &err);
    if (!code && ane_request_create(kernel, in, 2, out, 1, &request, &err))
        code = failed("bind", &err);
    if (!code) {
        memcpy(ane_tensor_data(&in[0]), x, sizeof x);
        memcpy(ane_tensor_data(&in[1]), w, sizeof w);
        if (ane_request_run(request, NULL, &err)) code = failed("run", &err);
    }
    if (!code) {
        const float *y = ane_tensor_data(&out[0]);
        printf("%s on %s: %s =", ane_version(), ane_kernel_device(kernel),
               ane_kernel_output(kernel, 0)->name);
        for (int64_t i = 0; i < ane_tensor_count(&out[0]); i++) printf(" %g", (double)y[i]);
        printf("\n");
    }
    ane_request_release(request);
    ane_surface_release(in[0].surface);
    ane_surface_release(in[1].surface);
    ane_surface_release(out[0].surface);
    ane_kernel_release(kernel);
    ane_program_release(program);
    return code;
}
