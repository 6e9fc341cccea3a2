// Runs the bundle's network with TensorRT (8.5 to 11), and compares the first sample's outputs.
//
//   g++ -std=c++17 -O2 example.cpp -o example -I CUDA/include -L CUDA/lib64 -lnvinfer -lnvonnxparser -lcudart
//   ./example FOLDER_OF_THE_BUNDLE [ENGINE]
//
// CUDA is /usr/local/cuda on JetPack. An engine runs on the GPU and with the TensorRT that built it: it
// is read from ENGINE where that file is there, else it is built, which may take long, and kept there.

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <memory>

#include "model.h"

class Logger : public nvinfer1::ILogger {
  void log(Severity severity, const char *text) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", text);
  }
};

static void cuda(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

template <typename T>
static std::unique_ptr<T> made(T *object, const char *what) {
  if (object == nullptr) throw std::runtime_error(std::string("TensorRT made no ") + what);
  return std::unique_ptr<T>(object);
}

// Whether an option says anything.
static bool asked(const std::string &name) {
  const std::string value = model::option(name);
  return !value.empty() && value != "None" && value != "[]" && value != "false";
}

// A file of the artifact, and what the builder may compute it in; as wherry's own runner has it.
static std::string choose(nvinfer1::IBuilderConfig &config) {
  const std::string precision = model::precision;
  const bool rest = precision == "int8" && model::option("int8_rest") != "fp32";
  if (asked("keep_fp32") || asked("shapes") || asked("dla") ||
      (precision == "int8" && model::option("int8") == "implicit"))
    throw std::runtime_error("this network's options want more than is written here: run example.py "
                             "with BUNDLE_CACHE=FOLDER, and name the engine.plan in it as ENGINE");
#if NV_TENSORRT_MAJOR >= 11  // types stand in the file alone
  (void)config;
  return precision == "fp16" || precision == "bf16" || rest ? "typed.onnx" : "model.onnx";
#else
  using Flag = nvinfer1::BuilderFlag;
  if (precision == "fp16" || rest) config.setFlag(Flag::kFP16);
  if (precision == "int8") config.setFlag(Flag::kINT8);
  if (precision == "bf16") {
#if NV_TENSORRT_MAJOR >= 10
    config.setFlag(Flag::kBF16);
#else
    throw std::runtime_error("bfloat16 wants TensorRT 10 or newer");
#endif
  }
  return "model.onnx";
#endif
}

static std::vector<char> build(const std::string &folder, Logger &logger) {
  const auto builder = made(nvinfer1::createInferBuilder(logger), "builder");
#if NV_TENSORRT_MAJOR >= 10
  const auto network = made(builder->createNetworkV2(0), "network");
#else
  const auto network = made(
      builder->createNetworkV2(
          1U << int(nvinfer1::NetworkDefinitionCreationFlag::kEXPLICIT_BATCH)),
      "network");
#endif
  const auto config = made(builder->createBuilderConfig(), "configuration");
  const std::string path = folder + "/artifact/" + choose(*config);
  const auto parser = made(nvonnxparser::createParser(*network, logger), "parser");
  if (!parser->parseFromFile(path.c_str(), int(nvinfer1::ILogger::Severity::kWARNING)))
    throw std::runtime_error("TensorRT does not parse " + path);
  if (!asked("tf32")) config->clearFlag(nvinfer1::BuilderFlag::kTF32);
  if (asked("sparsity")) config->setFlag(nvinfer1::BuilderFlag::kSPARSE_WEIGHTS);
  if (asked("workspace_mb"))
    config->setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE,
                               std::stoull(model::option("workspace_mb")) << 20);
#if NV_TENSORRT_MAJOR > 8 || NV_TENSORRT_MINOR >= 6
  if (asked("optimization_level"))
    config->setBuilderOptimizationLevel(std::stoi(model::option("optimization_level")));
#endif
  const auto plan = made(builder->buildSerializedNetwork(*network, *config), "engine");
  const char *begin = static_cast<const char *>(plan->data());
  return std::vector<char>(begin, begin + plan->size());
}

// The engine's bytes, from the file or for it; an empty name is no file.
static std::vector<char> plan(const std::string &folder, const std::string &file, Logger &logger) {
  if (!file.empty() && std::ifstream(file)) return model::read(file);
  const std::vector<char> bytes = build(folder, logger);
  if (!file.empty()) {
    std::ofstream part(file + ".part", std::ios::binary);
    part.write(bytes.data(), bytes.size());
    part.close();
    if (!part || std::rename((file + ".part").c_str(), file.c_str()) != 0)
      throw std::runtime_error("cannot write " + file);
  }
  return bytes;
}

struct Buffer {
  void *address = nullptr;
  std::vector<char> bytes;  // the host's

  explicit Buffer(std::vector<char> given) : bytes(std::move(given)) {
    cuda(cudaMalloc(&address, bytes.size()));
  }
  Buffer(const Buffer &) = delete;
  ~Buffer() { cudaFree(address); }
};

static nvinfer1::Dims dims_of(const model::Tensor &tensor) {
  nvinfer1::Dims dims{};
  dims.nbDims = int(tensor.shape.size());
  for (std::size_t i = 0; i < tensor.shape.size(); i++) dims.d[i] = tensor.shape[i];
  return dims;
}

// Inputs and outputs are float32 or int32, whatever is computed between.
static std::size_t size_of(const model::Tensor &tensor) {
  std::size_t size = 4;
  for (const int64_t side : tensor.shape) size *= std::size_t(side);
  return size;
}

static bool run(const std::string &folder, const std::string &file) {
  Logger logger;
  const auto runtime = made(nvinfer1::createInferRuntime(logger), "runtime");
  if (asked("dla")) runtime->setDLACore(std::stoi(model::option("dla")));
  const std::vector<char> bytes = plan(folder, file, logger);
  const auto engine = made(runtime->deserializeCudaEngine(bytes.data(), bytes.size()), "engine");
  cudaStream_t stream;
  cuda(cudaStreamCreate(&stream));
  std::vector<std::unique_ptr<Buffer>> buffers;  // behind the context that points into them
  const auto context = made(engine->createExecutionContext(), "context");

  const auto bind = [&](const model::Tensor &tensor, std::vector<char> values) {
    const auto type = std::string(tensor.dtype) == "int32" ? nvinfer1::DataType::kINT32
                                                           : nvinfer1::DataType::kFLOAT;
    buffers.push_back(std::make_unique<Buffer>(std::move(values)));
    if (engine->getTensorDataType(tensor.name) != type ||
        !context->setTensorAddress(tensor.name, buffers.back()->address))
      throw std::runtime_error(std::string("the engine does not take or give ") + tensor.name);
  };
  for (const model::Tensor &input : model::inputs) {
    bind(input, model::sample(folder, input));
    const Buffer &buffer = *buffers.back();
    if (buffer.bytes.size() != size_of(input) ||
        !context->setInputShape(input.name, dims_of(input)))
      throw std::runtime_error(std::string("the engine does not take the shape of ") + input.name);
    cuda(cudaMemcpyAsync(buffer.address, buffer.bytes.data(), buffer.bytes.size(),
                         cudaMemcpyHostToDevice, stream));
  }
  for (const model::Tensor &output : model::outputs)
    bind(output, std::vector<char>(size_of(output)));
  if (!context->enqueueV3(stream)) throw std::runtime_error("TensorRT did not run the engine");
  bool same = true;
  for (std::size_t i = 0; i < model::outputs.size(); i++) {
    Buffer &buffer = *buffers[model::inputs.size() + i];
    cuda(cudaMemcpyAsync(buffer.bytes.data(), buffer.address, buffer.bytes.size(),
                         cudaMemcpyDeviceToHost, stream));
    cuda(cudaStreamSynchronize(stream));
    same = model::check(folder, model::outputs[i], buffer.bytes.data(), buffer.bytes.size()) && same;
  }
  cuda(cudaStreamDestroy(stream));
  return same;
}

int main(int argc, char **argv) {
  try {
    return run(argc > 1 ? argv[1] : "..", argc > 2 ? argv[2] : "") ? 0 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
