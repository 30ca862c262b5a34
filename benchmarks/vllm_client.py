"""vLLM's own serving client, `vllm bench serve`, without its command line.

That one looks up the version of a package named `vllm`; on a CPU the package has another name.
"""

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
